"""Exported files that were changed or that somebody else made: one line, and nothing else is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdistill.deploy.card import card_json, card_values
from segdistill.deploy.predictor import open_predictor
from segdistill.types import UserError

IMAGE = np.full((9, 11, 3), 100, np.uint8)
FREE = ("n", "h", "w", 3)


def graph(path: Path, card: Any, change: Callable[[onnx.ModelProto], None] = lambda model: None, **sides: Any) -> Path:
    """A graph that takes an image and gives labels and two probabilities, as an exported one does, by hand."""
    labels, chances = sides.get("labels", ("n", "h", "w")), sides.get("probabilities", ("n", 2, "h", "w"))
    kind = sides.get("kind", TensorProto.UINT8)
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["real", "weight"], ["moved"]),
        helper.make_node("ReduceMax", ["moved", "last"], ["grey"], keepdims=0),
        helper.make_node("Cast", ["grey"], ["labels"], to=kind),
        helper.make_node("Unsqueeze", ["grey", "one"], ["single"]),
        helper.make_node("Concat", ["single"] * len(card.classes), ["probabilities"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, sides.get("image", FREE))],
        [
            helper.make_tensor_value_info(sides.get("name", "labels"), kind, labels),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, chances),
        ],
        [
            numpy_helper.from_array(np.full((3,), sides.get("add", -100), np.float32), "weight"),
            numpy_helper.from_array(np.array([3]), "last"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"card": card_json(card_values(card))})
    change(model)
    onnx.save(model, path)
    return path


def fails(path: Path, image: np.ndarray = IMAGE) -> str:
    with pytest.raises(UserError) as error:
        open_predictor(path, threads=1).predict(image)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    return str(error.value)


def test_the_graph_itself_is_sound(card, tmp_path):
    """So that the tests below refuse for what they change."""
    found = open_predictor(graph(tmp_path / "a.onnx", card()), threads=1).predict(IMAGE)
    assert found.labels.shape == IMAGE.shape[:2]
    assert not found.labels.any()


def test_results_that_are_not_what_the_card_says(card, tmp_path):
    assert "something else" in fails(graph(tmp_path / "a.onnx", card(), add=-93))  # class 7 of two
    assert "something else" in fails(graph(tmp_path / "b.onnx", card(), kind=TensorProto.INT64))

    def one_class(model: onnx.ModelProto) -> None:
        del model.graph.node[5].input[1:]

    sides = ("n", 1, "h", "w")
    assert "something else" in fails(graph(tmp_path / "c.onnx", card(), one_class, probabilities=sides))


def test_graphs_that_take_or_give_something_else(card, tmp_path):
    def renamed(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = model.graph.node[0].input[0] = "picture"

    assert "image" in fails(graph(tmp_path / "a.onnx", card(), renamed))

    def without_labels(model: onnx.ModelProto) -> None:
        del model.graph.output[0]

    assert "labels" in fails(graph(tmp_path / "b.onnx", card(), without_labels))
    assert "cannot predict an image of 11x9" in fails(graph(tmp_path / "c.onnx", card(), image=("n", 4, 4, 3)))


def test_a_card_that_is_wrong(card, tmp_path):
    for number, text in enumerate(("", "{", "[]", "[" * 100_000, '{"format_version": 1}')):
        change = lambda model, text=text: helper.set_model_props(model, {"card": text})  # noqa: E731
        assert "card" in fails(graph(tmp_path / f"{number}.onnx", card(), change))


@pytest.mark.parametrize("location", ["../secret.bin", "absolute", "student/../../secret.bin"])
def test_weights_in_a_file_elsewhere_are_not_read(card, tmp_path, location):
    """ONNX may keep tensors in other files; one outside the graph's folder is nobody's weights."""
    folder = tmp_path / "in"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.full(3, -100, np.float32).tobytes())

    def elsewhere(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", str(secret) if location == "absolute" else location

    path = graph(tmp_path / "b.onnx", card())
    content = onnx.load(path)
    elsewhere(content)
    (folder / "a.onnx").write_bytes(content.SerializeToString())
    assert "cannot be loaded" in fails(folder / "a.onnx")


def test_openvino_files_that_were_changed(card, tmp_path):
    import hashlib

    from segdistill.deploy.openvino_file import write_openvino

    path, whole = tmp_path / "student.xml", card_json(card_values(card()))
    write_openvino(graph(tmp_path / "a.onnx", card()), path, {"card": whole, "precision": "fp32"}, half=False)
    assert not open_predictor(path, threads=1).predict(IMAGE).labels.any()
    text, weights = path.read_text(encoding="utf-8"), path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(b"")
    assert "OpenVINO" in fails(path)
    path.write_text(text.replace(hashlib.sha256(weights).hexdigest(), hashlib.sha256(b"").hexdigest()), "utf-8")
    assert "OpenVINO" in fails(path)
    path.with_suffix(".bin").unlink()
    assert "OpenVINO" in fails(path)
    path.with_suffix(".bin").write_bytes(weights)
    for old, new in (('type="Concat"', 'type="Nothing"'), ('axis="1"', 'axis="9"'), ("<net ", "<nix ")):
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")
        assert "OpenVINO" in fails(path)


def test_names_that_are_no_text(card, tmp_path):
    path = graph(tmp_path / "a.onnx", card())
    content = path.read_bytes()
    assert b"supervised" in content
    path.write_bytes(content.replace(b"supervised", b"\xff" * 10))
    assert "no text" in fails(path)
