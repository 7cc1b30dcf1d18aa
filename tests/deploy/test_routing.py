"""Each image is predicted as the modality told, else as the one found; what is uncertain is said."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from helpers import assert_batches
from modalities import picture, saved, tensor, two_modalities
from PIL import Image

from segdistill.deploy.predict import predict_files
from segdistill.deploy.predictor import open_predictor
from segdistill.deploy.routing import Route
from segdistill.deploy.serve.answers import areas, predict_upload
from segdistill.deploy.slices import predict_slices
from segdistill.deploy.stages import Extras
from segdistill.types import UserError

KINDS = ("bright", "dark", "between")


@pytest.fixture(scope="module")
def student_folder(module_path):
    return saved(module_path / "student")


@pytest.fixture(scope="module")
def predictors(student_folder):
    """By torch, by onnxruntime and by OpenVINO."""
    from segdistill.deploy.export import export_onnx
    from segdistill.deploy.low_precision import metadata
    from segdistill.deploy.openvino_file import write_openvino

    file = student_folder.parent / "student.onnx"
    export_onnx(student_folder, file)
    write_openvino(file, file.with_suffix(".xml"), metadata(file), half=False)
    return [open_predictor(path) for path in (student_folder, file, file.with_suffix(".xml"))]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "Bilder ä"
    folder.mkdir()
    for seed, kind in enumerate(KINDS):
        Image.fromarray(picture(kind, seed + 9)).save(folder / f"{kind}.png")
    return folder


def table(out):
    with (out / "routing.csv").open(encoding="utf-8", newline="") as file:
        return {row.pop("image"): row for row in csv.DictReader(file)}


def test_torch_and_the_graph_route_alike(predictors):
    student = two_modalities()
    for kind in KINDS:
        image = picture(kind, 20)
        with torch.no_grad():
            expected = student.route(tensor([image]))[0].numpy()
            told = [student(tensor([image]), torch.tensor([k])).softmax(1)[0].numpy() for k in (0, 1)]
        assert np.abs(told[0] - told[1]).max() > 0.01
        for predictor in predictors:
            assert predictor.routes
            np.testing.assert_allclose(predictor.route(image), expected, atol=1e-4)
            found = predictor.predict(image)
            np.testing.assert_allclose(found.routing, expected, atol=1e-4)
            np.testing.assert_allclose(found.probabilities, told[expected.argmax()], atol=1e-4)
            for k in (0, 1):
                np.testing.assert_allclose(predictor.predict(image, k).probabilities, told[k], atol=1e-4)


@pytest.mark.parametrize("which", [0, 1], ids=["torch", "onnx"])
def test_a_mixed_folder_without_being_told(predictors, images, tmp_path, which):
    predictor, out = predictors[which], tmp_path / "out"
    summary = predict_files(predictor, [images], out)
    assert (summary.written, [route.image for route in summary.unsure]) == (3, ["between"])
    rows = table(out)
    assert [rows[kind]["modality"] for kind in ("bright", "dark")] == ["bright", "dark"]
    decided = {kind: row["decided_by"] for kind, row in rows.items()}
    assert decided == {"bright": "classifier", "dark": "classifier", "between": "classifier, unsure"}
    assert float(rows["bright"]["confidence"]) > 0.9 > 0.8 > float(rows["between"]["confidence"])
    for kind in KINDS:
        expected = predictor.predict(picture(kind, KINDS.index(kind) + 9)).labels
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{kind}.png")), expected)


@pytest.mark.parametrize("which", [0, 1], ids=["torch", "onnx"])
def test_a_served_student_says_what_it_took_an_image_for(predictors, images, folder, which):
    said = {}
    for kind in KINDS:
        done = predict_upload(predictors[which], (images / f"{kind}.png").read_bytes(), None, 10_000)
        said[kind] = json.loads(areas(done).body)["modality"]
    assert {kind: entry["decided_by"] for kind, entry in said.items()} == {
        "bright": "classifier",
        "dark": "classifier",
        "between": "classifier, unsure",
    }
    assert [said[kind]["name"] for kind in ("bright", "dark")] == ["bright", "dark"]
    assert said["between"]["confidence"] < 0.8
    plain = predict_upload(open_predictor(folder), (images / "dark.png").read_bytes(), None, 10_000)
    assert "modality" not in json.loads(areas(plain).body)


def test_what_is_told_holds(predictors, images, tmp_path):
    predictor, out = predictors[0], tmp_path / "out"
    assert predict_files(predictor, [images], out, modality="dark") == (3, 0, [], [])
    assert {row["decided_by"] for row in table(out).values()} == {"told"}
    assert {row["confidence"] for row in table(out).values()} == {""}
    bright = predictor.predict(picture("bright", 9), 0).labels
    assert (bright != predictor.predict(picture("bright", 9)).labels).any()
    np.testing.assert_array_equal(np.asarray(Image.open(out / "bright.png")), bright)


def test_a_second_run_keeps_what_was_decided_and_a_new_word_redoes_it(predictors, images, tmp_path):
    predictor, out = predictors[0], tmp_path / "out"
    first = predict_files(predictor, [images], out)
    before = table(out)
    again = predict_files(predictor, [images], out)
    assert again == (0, 3, [], first.unsure)  # still said
    assert table(out) == before
    assert predict_files(predictor, [images], out, modality="bright")[:2] == (1, 2)  # the dark one, taken for dark
    assert {row["modality"] for row in table(out).values()} == {"bright"}


def test_the_table_keeps_what_other_images_were_taken_for(predictors, images, tmp_path):
    """Told otherwise of one image, and not of the others; two runs at once, of which one ends first."""
    predictor, out = predictors[0], tmp_path / "out"
    predict_files(predictor, [images], tmp_path / "whole")

    def meanwhile(*_):
        assert predict_files(predictor, [images / "between.png"], out)[:2] == (1, 0)

    predict_files(predictor, [images / "bright.png"], out, modality="bright")
    predict_files(predictor, [images / "dark.png"], out, on_progress=meanwhile)
    assert list(table(out)) == ["between", "bright", "dark"]
    assert [table(out)[name] for name in ("between", "dark")] == [
        table(tmp_path / "whole")[name] for name in ("between", "dark")
    ]
    assert predict_files(predictor, [images], out)[:2] == (0, 3)


def test_a_killed_run_leaves_what_it_decided(predictors, images, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    predict_files(predictors[0], [images], tmp_path / "whole")

    def dying(done, total, image):
        calls.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(predictors[0], [images], out, on_progress=dying)
    with (out / "routing.csv").open("a", encoding="utf-8") as file:
        file.write("dar")  # half a line
    assert predict_files(predictors[0], [images], out)[:2] == (1, 2)
    assert table(out) == table(tmp_path / "whole")


def test_a_mask_without_its_row_is_predicted_again(predictors, images, tmp_path):
    """As of a run that was stopped between the two, also of one that was to predict all anew."""
    out = tmp_path / "out"
    predict_files(predictors[0], [images], out)
    before = table(out)
    lines = (out / "routing.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "routing.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    assert predict_files(predictors[0], [images], out)[:2] == (1, 2)
    assert table(out) == before

    def dying(done, total, image):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(predictors[0], [images], out, modality="dark", overwrite=True, on_progress=dying)
    assert {row["modality"] for row in table(out).values()} == {"dark"}
    assert predict_files(predictors[0], [images], out, modality="dark")[:2] == (2, 1)


def test_a_volume_and_a_tiled_image_are_of_one_modality(predictors, monkeypatch):
    """A volume of two bright slices and a dark one: the dark slice alone would be routed elsewhere."""
    predictor = predictors[0]
    volume = np.stack([picture(kind, 5).mean(2).astype(np.uint8) for kind in ("bright", "dark", "bright")])
    found = predict_slices(predictor, volume)
    alone = predictor.predict(np.repeat(volume[1][..., None], 3, 2))
    assert alone.routing.argmax() == 0
    assert found.routing.argmax() == 1
    np.testing.assert_array_equal(found.labels[1], predictor.predict(np.repeat(volume[1][..., None], 3, 2), 1).labels)
    seen, predict = [], predictor.predict
    monkeypatch.setattr(predictor, "predict", lambda image, modality=None: seen.append(modality) or predict(image, 1))
    wide = np.concatenate([picture("bright", 1, (64, 256)), picture("dark", 2, (64, 64))], axis=1)
    predict_slices(predictor, wide[None], tile=True)
    assert len(seen) > 3
    assert set(seen) == {1}


def test_modalities_that_cannot_be_told_are_one_line(predictors, folder, images, tmp_path):
    with pytest.raises(UserError, match="--modality xray: the student knows dark, bright; choose one of these"):
        predict_files(predictors[0], [images], tmp_path / "out", modality="xray")
    with pytest.raises(UserError, match="this student has no modalities"):
        predict_files(open_predictor(folder), [images], tmp_path / "out", modality="xray")
    alone = open_predictor(folder)
    object.__setattr__(alone.card, "modalities", ("a", "b"))
    with pytest.raises(UserError, match="treats all modalities alike"):
        predict_files(alone, [images], tmp_path / "out", Extras(), modality="a")
    assert not (tmp_path / "out").exists()


def test_a_student_of_one_modality_has_no_table(tmp_path, images):
    from segdistill.models.modality_change import bind_modality

    bound = bind_modality(two_modalities(), "bright")
    predictor = open_predictor(saved(tmp_path / "student", bound))
    assert not predictor.routes
    assert predict_files(predictor, [images], tmp_path / "out", modality="bright") == (3, 0, [], [])
    assert not (tmp_path / "out" / "routing.csv").exists()


def test_a_file_for_one_modality_is_smaller_and_says_the_same(predictors, student_folder, tmp_path):
    from segdistill.deploy.export import export_onnx

    export_onnx(student_folder, tmp_path / "bright.onnx", modality="bright")
    bound, whole = open_predictor(tmp_path / "bright.onnx"), student_folder.parent / "student.onnx"
    assert bound.card.modalities == ("bright",)
    assert not bound.routes
    assert [entry.name for entry in bound.session.get_inputs()] == ["image"]
    assert not bound.session.get_overridable_initializers()
    assert_batches(tmp_path / "bright.onnx", [picture(kind) for kind in KINDS])
    own = 4 * sum(p.numel() for p in two_modalities().own_parameters(0))
    assert whole.stat().st_size - (tmp_path / "bright.onnx").stat().st_size > 0.95 * own
    for kind in KINDS:  # the dark one too: nothing is found out
        for predictor in predictors:
            told = predictor.predict(picture(kind, 3), 1)
            np.testing.assert_allclose(bound.predict(picture(kind, 3)).probabilities, told.probabilities, atol=1e-4)


def test_a_modality_that_is_not_there_cannot_be_bound(student_folder, folder, tmp_path):
    from segdistill.deploy.export import export_onnx

    with pytest.raises(UserError, match="no modality 'xray'; give one of dark, bright"):
        export_onnx(student_folder, tmp_path / "x.onnx", modality="xray")
    with pytest.raises(UserError, match="has no weights of a modality's own"):
        export_onnx(folder, tmp_path / "x.onnx", modality="xray")
    assert not list(tmp_path.glob("*.onnx"))


def test_a_mixed_batch_in_one_file(predictors):
    """One after the other through one session: no state, each image its own modality's probabilities."""
    student, graph = two_modalities(), predictors[1]
    images = [picture(kind, seed) for seed in range(3) for kind in ("dark", "bright")]
    with torch.no_grad():
        mixed = student(tensor(images)).softmax(1).numpy()  # one pass in torch
    for expected, image in zip(mixed, images, strict=True):
        np.testing.assert_allclose(graph.predict(image).probabilities, expected, atol=1e-4)


def test_from_how_much_on_a_choice_is_sure():
    assert [Route("a", "m", c).decided_by for c in (None, 0.8, 0.79)] == ["told", "classifier", "classifier, unsure"]
