"""A student that needs no training and no torch: what is bright is the foreground, written as a graph by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from segdistill.deploy.card import Card, card_json, card_values


def write_bright(file: Path, routes: bool = False) -> Path:
    """The .onnx file; with `routes` it tells images of modality "night" from those of "day" by their mean."""
    card = Card(
        "unet",
        {"classes": 2},
        "supervised",
        ("dark", "bright"),
        ((0, 0, 0), (255, 0, 0)),
        (32, 32),
        "",
        modalities=("night", "day") if routes else (),
    )
    make = helper.make_node
    nodes = [
        make("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        make("ReduceMean", ["float", "colours"], ["level"], keepdims=0),
        make("Div", ["level", "white"], ["bright"]),
        make("Sub", ["one", "bright"], ["dark"]),
        make("Unsqueeze", ["dark", "classes"], ["p0"]),
        make("Unsqueeze", ["bright", "classes"], ["p1"]),
        make("Concat", ["p0", "p1"], ["probabilities"], axis=1),
        make("GreaterOrEqual", ["bright", "half"], ["decided"]),
        make("Cast", ["decided"], ["labels"], to=TensorProto.UINT8),
    ]
    numbers = [
        helper.make_tensor(k, TensorProto.FLOAT, [], [v]) for k, v in (("white", 255), ("one", 1), ("half", 0.5))
    ]
    axes = [("colours", [3]), ("classes", [1])]
    value = helper.make_tensor_value_info
    outputs = [
        value("labels", TensorProto.UINT8, ["images", "height", "width"]),
        value("probabilities", TensorProto.FLOAT, ["images", 2, "height", "width"]),
    ]
    if routes:
        nodes += [make("ReduceMean", ["probabilities", "plane"], ["routing"], keepdims=0)]
        axes += [("plane", [2, 3])]
        outputs += [value("routing", TensorProto.FLOAT, ["images", 2])]
    graph = helper.make_graph(
        nodes,
        "bright",
        [value("image", TensorProto.UINT8, ["images", "height", "width", 3])],
        outputs,
        [*numbers, *(helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in axes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"card": card_json(card_values(card))})
    onnx.save(model, file)
    return file
