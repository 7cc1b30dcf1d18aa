"""The exported graph as OpenVINO's two files, NAME.xml and NAME.bin, and what predicts with them. No torch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .card import parse_card
from .predictor import Prediction, Predictor, computing, fitting, identity_of, require_paddable
from .side_by_side import shares

HOME = "segdistill"  # where in the file's own notes ours lie


def import_openvino() -> Any:
    """OpenVINO without its telemetry, which would tell Google Analytics of every import. Raises ImportError."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it then does without
    import openvino

    return openvino


def write_openvino(graph: Path, out: Path, entries: dict[str, str], *, half: bool) -> None:
    """Write `out` (.xml) and its .bin of an ONNX graph; `half`: weights stored as fp16.

    The xml says the hash of its bin, so that files of two exports do not pass for one.
    """
    import onnx

    openvino = import_openvino()
    proto = onnx.load(str(graph))
    inputs = {value.name for value in proto.graph.input}
    constants = [tensor for tensor in proto.graph.initializer if tensor.name not in inputs]  # a default would bind it
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(constants)
    plain = out.with_suffix(".plain.onnx")
    onnx.save(proto, str(plain))
    model = openvino.Core().read_model(str(plain))
    _restore_antialiasing(model)
    openvino.save_model(model, str(out), compress_to_fp16=half)
    for key, value in (entries | {"bin_sha256": _bin_hash(out)}).items():
        model.set_rt_info(value, [HOME, key])
    openvino.save_model(model, str(out), compress_to_fp16=half)
    plain.unlink()


def _restore_antialiasing(model: Any) -> None:
    """Let the input be resized as the graph says: OpenVINO reads ONNX's `antialias` but does not act on it."""
    opset11 = import_openvino().opset11
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["antialias"]:
            size = [side.get_length() for side in list(node.get_output_partial_shape(0))[2:]]
            resized = opset11.interpolate(
                node.input_value(0),
                np.array(size, np.int64),
                mode="bilinear_pillow",
                shape_calculation_mode="sizes",
                axes=np.array([2, 3], np.int64),
            )
            node.output(0).replace(resized.output(0))


def _bin_hash(path: Path) -> str:
    return hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, UnicodeDecodeError) as error:  # its own; its message quotes bytes of the file
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"{path} is no student that OpenVINO can load ({reason}); export it again") from None


class OpenVinoPredictor(Predictor):
    """Runs what `write_openvino` wrote, on the CPU.

    Of a file in bf16, layers compute in bf16 where the processor can, else in fp32; other files in int8 and fp32.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None, *, images: int = 1) -> None:
        try:
            openvino = import_openvino()
        except ImportError:
            raise UserError(f"{path} needs openvino; install it with: pip install segdistill[openvino]") from None
        if device != "cpu":
            raise UserError(f"device {device!r} cannot be used: OpenVINO files run on the CPU here; use cpu")
        core = openvino.Core()
        with _loading(path):
            model = core.read_model(str(path))
            entries = {key: model.get_rt_info([HOME, key]).astype(str) for key in ("card", "precision", "bin_sha256")}
            names = {port.get_any_name() for port in model.outputs}
            own = _bin_hash(path)
        if entries["bin_sha256"] != own:
            raise UserError(f"{path} and {path.stem}.bin are not of one export; copy both again")
        self.card, _ = parse_card(entries["card"], f"the card in {path}")
        self.path, self.routes, self.identity = path, "routing" in names, identity_of(path)
        self.outputs = ["labels", "probabilities", *["routing"] * self.routes]
        with _loading(path):
            model.reshape({"image": [1, -1, -1, 3]})  # known shapes inside the network: up to three times as fast
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if entries["precision"] == "bf16" else "f32",
        }
        self.workers, each = shares(threads, images)
        if each is not None:
            config |= {"NUM_STREAMS": self.workers, "INFERENCE_NUM_THREADS": self.workers * each}
        with _loading(path):
            self.model = core.compile_model(model, "CPU", config)
        self.own = local()  # a request of each thread: one computes one image at a time

    def raw(self, image: NDArray[np.uint8], modality: int | None = None) -> Prediction:
        """The graph's own outputs."""
        require_paddable(image, self.card)
        given = {"image": np.ascontiguousarray(image)[None]}
        if self.routes:
            given["modality"] = np.array([-1 if modality is None else modality])
        with computing(self.path.name, image):
            if not hasattr(self.own, "request"):
                self.own.request = self.model.create_infer_request()
            found = self.own.request.infer(given)
            result = Prediction(*(found[name][0].copy() for name in self.outputs))
        return fitting(result, image, self.card, self.path)

    def route(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As in Predictor; OpenVINO computes the masks with it."""
        routing = self.raw(image).routing
        assert routing is not None  # asked only of a student that routes
        return routing
