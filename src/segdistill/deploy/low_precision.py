"""A smaller graph out of an exported one: int8 weights and activations, or bf16 weights.

Reads and writes ONNX files, keeps their metadata. Whether the result is good enough is for others to measure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NARROW = 8  # channels: a convolution with fewer sees the image or gives the classes. It costs little and decides much
WORTH = 256  # values: fewer stay fp32


def quantise(source: Path, out: Path, images: Iterable[NDArray[np.uint8]]) -> None:
    """Convolutions and products with weights in int8, in ONNX's QDQ form; the rest stays fp32.

    Weights have a scale per channel, activations one per tensor: the mean over `images` (H, W, 3) of each one's range,
    so that a single odd image widens none.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(str(source))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    chosen = [node.name for node in model.graph.node if _worth_quantising(node, shapes)]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to fold batch norms, which the exporter has done
    try:
        quantize_static(
            str(source),
            str(out),
            _Images(iter(images)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
            extra_options={"CalibMovingAverage": True},
        )
    finally:
        logging.disable(before)
    _save(onnx.load(str(out)), metadata(source) | {"precision": "int8"}, out)


class _Images:
    """What the calibration asks for, one image at a time."""

    def __init__(self, images: Iterator[NDArray[np.uint8]]) -> None:
        self.images = images

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next image as the graph's input."""
        image = next(self.images, None)
        return None if image is None else {"image": np.ascontiguousarray(image)[None]}


def _worth_quantising(node: Any, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Wide convolutions, and products with weights; not those of two activations, as in attention."""
    weight = shapes.get(node.input[1]) if node.op_type in ("Conv", "MatMul") else None
    if weight is None or node.op_type == "MatMul":
        return weight is not None
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return min(weight[0], weight[1] * groups) >= NARROW


def halve(source: Path, out: Path) -> None:
    """Weights stored as bf16; what runs the graph makes them fp32 when it loads it, and computes in fp32."""
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    kept, casts = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) >= WORTH:
            values = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
            casts.append(helper.make_node("Cast", [f"{tensor.name}.bf16"], [tensor.name], to=TensorProto.FLOAT))
            tensor = numpy_helper.from_array(values, f"{tensor.name}.bf16")
        kept.append(tensor)
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    _save(model, metadata(source) | {"precision": "bf16"}, out)


def metadata(graph: Path) -> dict[str, str]:
    """What a graph says about itself."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(str(graph)).metadata_props}


def _save(model: Any, entries: dict[str, str], out: Path) -> None:
    import onnx

    del model.metadata_props[:]  # the quantiser adds its own
    del model.graph.value_info[:]  # shapes that every reader works out for itself
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, str(out))
