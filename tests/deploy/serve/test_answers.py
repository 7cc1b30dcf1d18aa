from __future__ import annotations

import io
import json
import zlib
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segdistill.deploy.predict import predict_files
from segdistill.deploy.predictor import open_predictor
from segdistill.deploy.serve import answers
from segdistill.deploy.serve.answers import predict_upload, read_spacing
from segdistill.deploy.stages import Extras
from segdistill.types import UserError


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def grey16(image) -> Image.Image:
    return Image.fromarray(image[:, :, 0].astype(np.uint16) * 200 + 7)


def turned(image) -> Image.Image:
    """As a phone stores an upright picture."""
    made = Image.fromarray(image)
    made.getexif()[0x0112] = 6
    return made


FILES = {
    "a.png": lambda i: (Image.fromarray(i), {}),
    "b.jpg": lambda i: (turned(i), {"exif": turned(i).getexif()}),
    "c.tif": lambda i: (grey16(i), {}),
    "d.bmp": lambda i: (Image.fromarray(i), {}),
}


@pytest.mark.parametrize("name", FILES)
def test_mask_and_overlay_are_those_of_predict_byte_for_byte(folder, image, tmp_path, name):
    made, options = FILES[name](image(70, 91))
    made.save(tmp_path / name, **options)
    predictor = open_predictor(folder)
    predict_files(predictor, [tmp_path / name], tmp_path / "out", Extras(overlays=True))
    done = predict_upload(predictor, (tmp_path / name).read_bytes(), None, 10_000)
    stem = name[0]
    assert answers.mask(done) == ((tmp_path / "out" / f"{stem}.png").read_bytes(), "image/png")
    assert answers.drawn(done).body == (tmp_path / "out" / f"{stem}_overlay.png").read_bytes()


def test_padding_counts_as_pixels(bright, image):
    file = io.BytesIO()
    Image.fromarray(image(1, 300)).save(file, format="PNG")
    assert predict_upload(bright, file.getvalue(), None, 10_000).labels.shape == (1, 300)
    bright.card = replace(bright.card, fit="pad")  # to 300 x 300
    with pytest.raises(UserError, match=r"300x1 pixels is too long to pad \(to at most 10,000 pixels\)"):
        predict_upload(bright, file.getvalue(), None, 10_000)
    assert bright.calls == 1


def test_areas_are_counted(bright, png):
    values = json.loads(answers.areas(predict_upload(bright, png, (0.5, 0.2), 10_000)).body)
    labels = bright.predict(decoded(png)).labels
    assert (values["height"], values["width"]) == labels.shape == (40, 61)
    assert [one["name"] for one in values["classes"]] == list(bright.card.classes)
    for one in values["classes"]:
        count = int((labels == one["index"]).sum())
        assert one["pixels"] == count
        assert one["fraction"] == pytest.approx(count / 2440, abs=1e-6)
        assert one["mm2"] == pytest.approx(count * 0.1, rel=1e-5)
    assert sum(one["pixels"] for one in values["classes"]) == 2440
    unknown = json.loads(answers.areas(predict_upload(bright, png, None, 10_000)).body)
    assert all(one["mm2"] is None for one in unknown["classes"])


@pytest.mark.parametrize(("shape", "size"), [((40, 61), (40, 61)), ((100, 2000), (64, 1280)), ((3, 5000), (1, 1280))])
def test_the_preview_is_what_the_page_can_draw(bright, image, shape, size):
    file = io.BytesIO()
    Image.fromarray(image(*shape)).save(file, format="PNG")
    done = predict_upload(bright, file.getvalue(), None, 10**6)
    values = json.loads(answers.view(done).body)
    preview = values["preview"]
    assert (preview["height"], preview["width"]) == size
    labels = np.frombuffer(zlib.decompress(b64decode(preview["labels"])), np.uint8).reshape(size)
    if shape == size:
        np.testing.assert_array_equal(labels, done.labels)
    assert set(np.unique(labels)) <= set(np.unique(done.labels))
    assert decoded(b64decode(preview["image"])).shape == (*size, 3)
    assert b64decode(values["mask"]) == answers.mask(done).body


@pytest.mark.parametrize(("text", "spacing"), [("", None), (" ", None), ("0.5", (0.5, 0.5)), ("0.5, 2", (0.5, 2.0))])
def test_spacing(text, spacing):
    assert read_spacing(text) == spacing


@pytest.mark.parametrize("text", ["a", "0", "-1", "nan", "inf", "1,2,3", "1,", "1e300", "1 2", "0x2"])
def test_a_spacing_that_is_none(text):
    with pytest.raises(UserError, match=r"spacing .* 0\.5,0\.4"):
        read_spacing(text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_sent_is_predicted_or_refused_in_one_line(bright, png, data):
    content = bytearray(png)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        done, said = predict_upload(bright, bytes(content), None, 10_000), ""
    except UserError as error:
        done, said = None, str(error)
    if done is None:
        assert said.startswith("the image: ")
        assert "\n" not in said
    else:
        assert done.labels.size <= 10_000
