"""Smaller graphs: what is made smaller, and to what."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from segdistill.deploy.low_precision import _worth_quantising, halve, metadata, quantise
from segdistill.deploy.predictor import open_predictor


def weights(file):
    return {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}


def test_bf16_weights_are_torchs(onnx_file, tmp_path):
    halve(onnx_file, tmp_path / "half.onnx")
    before, after = weights(onnx_file), weights(tmp_path / "half.onnx")
    rounded = [name for name in after if name.endswith(".bf16")]
    assert len(rounded) > 10
    for name in rounded:
        value = numpy_helper.to_array(before[name.removesuffix(".bf16")])
        expected = torch.tensor(value).bfloat16().float().numpy()
        np.testing.assert_array_equal(numpy_helper.to_array(after[name]).astype(np.float32), expected)
    assert (tmp_path / "half.onnx").stat().st_size < 0.55 * onnx_file.stat().st_size


@pytest.mark.parametrize(
    ("operator", "weight", "groups", "chosen"),
    [
        ("Conv", (16, 16, 3, 3), 1, True),
        ("Conv", (16, 3, 3, 3), 1, False),  # sees the image
        ("Conv", (2, 16, 1, 1), 1, False),  # gives the classes
        ("Conv", (32, 1, 3, 3), 32, True),  # depth-wise: 32 channels in, 32 out
        ("MatMul", (64, 64), 1, True),
        ("MatMul", None, 1, False),  # of two activations
        ("Add", (64,), 1, False),
    ],
)
def test_what_is_quantised(operator, weight, groups, chosen):
    node = helper.make_node(operator, ["x", "w"], ["y"], **({"group": groups} if operator == "Conv" else {}))
    assert _worth_quantising(node, {"w": weight} if weight else {}) is chosen


def test_int8_weights_have_a_scale_per_channel(onnx_file, image, tmp_path):
    quantise(onnx_file, tmp_path / "int8.onnx", [image(50, 70, seed) for seed in range(3)])
    graph = onnx.load(tmp_path / "int8.onnx").graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {len(kept[n.input[1]].dims) for n in graph.node if n.op_type == "DequantizeLinear"}
    assert ranks == {0, 1}  # activations, weights
    quantised = [
        tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(quantised) == 17  # of the U-Net's 19 convolutions
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * onnx_file.stat().st_size
    assert metadata(tmp_path / "int8.onnx") == metadata(onnx_file) | {"precision": "int8"}
    assert open_predictor(tmp_path / "int8.onnx").card == open_predictor(onnx_file).card


def scales(file):
    """Of the activations."""
    found = sorted(weights(file).items())
    return np.array([float(numpy_helper.to_array(t)) for name, t in found if not t.dims and "scale" in name])


def test_each_image_counts_once_for_a_range(onnx_file, image, tmp_path):
    """The calibration is a mean: the same images twice give the same file."""
    images = [image(50, 70, seed) for seed in range(2)]
    for name, given in (("once", images), ("twice", images * 2), ("other", images[:1])):
        quantise(onnx_file, tmp_path / name, given)
    once, twice, other = (scales(tmp_path / name) for name in ("once", "twice", "other"))
    np.testing.assert_allclose(once, twice, rtol=1e-5)
    assert not np.allclose(once, other, rtol=1e-5)
