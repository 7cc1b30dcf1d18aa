from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from helpers import assert_batches
from PIL import Image

from segdistill.deploy import export, predictor
from segdistill.deploy.artefact import read_card, save_student
from segdistill.deploy.card import parse_card
from segdistill.deploy.predictor import Prediction, open_predictor
from segdistill.types import UserError

SHAPES = [(64, 96), (48, 64), (1, 1), (1, 300), (17, 13), (300, 30), (333, 501), (640, 480)]


def test_any_size_agrees_with_torch(unet_folder, onnx_file, image):
    torch_, graph = open_predictor(unet_folder), open_predictor(onnx_file)
    equal, pixels = 0, 0
    for seed, shape in enumerate(SHAPES):
        a, b = torch_.raw(image(*shape, seed)), graph.raw(image(*shape, seed))
        assert np.abs(a.probabilities - b.probabilities).max() < 1e-3, shape
        assert b.labels.shape == shape
        equal, pixels = equal + (a.labels == b.labels).sum(), pixels + a.labels.size
    assert equal / pixels > 0.9999


def test_images_of_one_size_go_together(onnx_file, image):
    assert_batches(onnx_file, [image(50, 71, seed) for seed in range(3)])


def test_a_file_of_one_image_at_a_time_is_of_an_earlier_version(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    for node in model.graph.node:
        if "image" in node.input:
            node.input[list(node.input).index("image")] = "batch"
    model.graph.initializer.append(onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0]))
    model.graph.node.insert(0, onnx.helper.make_node("Unsqueeze", ["image", "first"], ["batch"]))
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(UserError, match="an earlier version wrote it; export it again"):
        open_predictor(tmp_path / "old.onnx")


def test_a_large_image_leaves_no_memory_behind(onnx_file, image, monkeypatch):
    """It is run by a session without an arena, which gives the same."""
    graph, picture = open_predictor(onnx_file), image(50, 70)
    expected = graph.raw(picture)
    assert graph.frugal is None
    monkeypatch.setattr(predictor, "LARGE", 50 * 70 - 1)
    found = graph.raw(picture)
    assert graph.frugal is not None
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_the_file_holds_everything(unet_folder, onnx_file):
    model = onnx.load(onnx_file, load_external_data=False)
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    card, sha256 = read_card(unet_folder)
    assert parse_card(entries["card"], "card")[0] == card
    assert tuple(json.loads(entries["classes"])) == card.classes
    assert entries["weights_sha256"] == sha256
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [f.name for f in onnx_file.parent.iterdir() if f.is_file()] == [onnx_file.name]
    for text in (str(unet_folder.parent), "/site-packages/"):  # traces of the machine that exported
        assert text.encode() not in onnx_file.read_bytes()


def test_the_check_reports_what_it_compared(folder, image, tmp_path, capfd):
    for name in ("a", "b"):
        Image.fromarray(image(70, 90)).save(tmp_path / f"{name}.png")
    check = export.export_onnx(folder, tmp_path / "neu" / "s.onnx", [tmp_path / "a.png", tmp_path / "b.png"])
    assert check.images == 2
    assert 0 <= check.max_difference < 1e-4
    assert check.label_agreement > 0.9999
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["probability", "label", "nan"])
def test_a_graph_that_disagrees_is_refused_and_not_left(folder, tmp_path, monkeypatch, fault):
    class Wrong(export.OnnxPredictor):
        def raw(self, image):
            labels, p = (array.copy() for array in super().raw(image)[:2])
            if fault == "label":
                labels.ravel()[::2000] ^= 1
            else:
                p[0, 0, 0] = np.nan if fault == "nan" else p[0, 0, 0] + 0.002
            return Prediction(labels, p)

    (tmp_path / "s.onnx").write_bytes(b"earlier")
    monkeypatch.setattr(export, "OnnxPredictor", Wrong)
    with pytest.raises(UserError, match=r"nothing written: onnxruntime and torch differ .* 5 images"):
        export.export_onnx(folder, tmp_path / "s.onnx")
    assert (tmp_path / "s.onnx").read_bytes() == b"earlier"
    assert {f.name for f in tmp_path.iterdir()} == {"s.onnx", folder.name}


def test_missing_libraries_and_wrong_names_are_one_line(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"ends in \.onnx"):
        export.export_onnx(folder, tmp_path / "s.pt")
    find_spec = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(UserError, match=r"export needs onnxscript; install with: pip install segdistill\[onnx\]"):
        export.export_onnx(folder, tmp_path / "s.onnx")


def test_synthetic_images_differ_in_shape(card):
    images = export.synthetic_images((64, 96))
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)
    heights, widths = np.array([image.shape[:2] for image in images]).T
    assert heights.min() < 64 < heights.max()
    assert widths.min() < 96 < widths.max()
    assert all(image.std() > 20 for image in images)


def test_a_network_onnx_cannot_express_is_one_line(card, network, tmp_path, monkeypatch):
    from segdistill.models import students

    class Branching(students.STUDENTS["micro"]):
        def forward(self, image, modality=None):
            return super().forward(image) if image.sum() > 0 else image[:, :2]

    monkeypatch.setitem(students.STUDENTS, "branching", Branching)
    c = card(name="branching")
    save_student(tmp_path / "s", students.build_student("branching", classes=2), c)
    with pytest.raises(UserError, match="'branching' cannot be exported to ONNX") as error:
        export.export_onnx(tmp_path / "s", tmp_path / "s.onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s.onnx").exists()
