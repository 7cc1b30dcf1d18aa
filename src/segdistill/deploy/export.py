"""One ONNX file that does it all: uint8 images of any size in; labels and probabilities of that size out.

The graph is refused unless onnxruntime computes with it what torch computes with the student.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formats import read_image
from ..types import UserError
from .card import card_json, card_values
from .predictor import BATCH, OnnxPredictor, Predictor, TorchPredictor

if TYPE_CHECKING:
    from .student import Student

MAX_DIFFERENCE = 1e-3  # of a probability
MIN_AGREEMENT = 0.9999  # of the labels, over all pixels of all images


@dataclass(frozen=True)
class ExportCheck:
    """How well the exported file does what the student does."""

    images: int
    max_difference: float  # of a probability
    label_agreement: float  # part of all pixels of all images


def export_onnx(
    student_folder: Path,
    out: Path,
    images: Sequence[Path] = (),
    modality: str | None = None,
    threads: int | None = None,
) -> ExportCheck:
    """Write `out` if onnxruntime agrees with torch on the images (built-in synthetic ones if none are given).

    The file holds the card, the class names and the hash of the weights; post-processing stays outside the graph and is
    applied by `open_predictor`. The graph of a student that tells modalities apart has an output "routing" (their
    probabilities) and an input "modality" that may be left out: the classifier then decides. Bound to a `modality`, it
    has neither, nor the other modalities' weights.

    Raises:
        UserError: `onnx`, `onnxscript` or `onnxruntime` is missing, the student or an image is unreadable, there is no
            such modality, or the two disagree; then no file is left.
    """
    from .artefact import bound_student, load_student, read_card

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {', '.join(missing)}; install with: pip install segdistill[onnx]")
    if out.suffix.lower() != ".onnx":
        raise UserError(f"{out} would not be found by predict; give a name that ends in .onnx")
    student = load_student(student_folder)
    if modality is not None:
        student = bound_student(student, modality)
    _, sha256 = read_card(student_folder)
    part = out.with_name(f".{out.stem}.part.onnx")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_graph(student, sha256, part)
        check = compare(student, OnnxPredictor(part, threads=threads), images)
        require_agreement(check, "onnxruntime")
        part.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error}); choose another place") from error
    finally:
        part.unlink(missing_ok=True)
    return check


def require_agreement(check: ExportCheck, engine: str) -> None:
    """UserError for a file that does not compute what torch computes."""
    if not (check.max_difference < MAX_DIFFERENCE and check.label_agreement > MIN_AGREEMENT):
        raise UserError(
            f"nothing written: {engine} and torch differ by up to {check.max_difference:.2g} in probability "
            f"and agree on {check.label_agreement:.4%} of the pixels of {check.images} images; needed "
            f"< {MAX_DIFFERENCE} and > {MIN_AGREEMENT:.2%}: try other versions of torch, onnxscript or {engine}"
        )


def _write_graph(student: Student, sha256: str, path: Path) -> None:
    import torch

    from .student import Batched, Routed

    free = {0: BATCH, 1: "height", 2: "width"}
    if student.routes:
        del free[0]  # the graph chooses one modality's weights
    sizes = ({axis: torch.export.Dim(name) for axis, name in free.items()},)
    h, w = student.card.size
    # Unlike any size in the network, to be told apart.
    example = torch.zeros(1 if student.routes else 2, h + 3, w + 5, 3, dtype=torch.uint8)
    not_told = torch.tensor([-1])
    try:
        with _quiet():
            program = torch.onnx.export(
                Routed(student) if student.routes else Batched(student),
                (example, not_told) if student.routes else (example,),
                dynamo=True,
                verbose=False,
                input_names=["image", *["modality"] * student.routes],
                output_names=["labels", "probabilities", *["routing"] * student.routes],
                dynamic_shapes=(*sizes, None) if student.routes else sizes,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(f"{student.card.name!r} cannot be exported to ONNX ({reason}); predict with torch") from error
    assert program is not None  # it is None only for the old exporter
    for node in program.model.graph.all_nodes():  # traces of the source files, with the paths of this machine
        node.metadata_props.clear()
    program.model.metadata_props.update(
        card=card_json(card_values(student.card)),
        classes=json.dumps(student.card.classes, ensure_ascii=False),
        weights_sha256=sha256,
        precision="fp32",
    )
    if student.routes:
        _make_optional(program.model.graph, "modality", not_told.numpy())
    program.save(str(path), external_data=False)


def _make_optional(graph: Any, name: str, default: NDArray[np.int64]) -> None:
    """Give an input of the graph a value for when it is left out: ONNX has it as an initializer of the same name."""
    import onnx_ir

    value = next(entry for entry in graph.inputs if entry.name == name)
    value.const_value = onnx_ir.tensor(default, name=name)
    graph.initializers[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice, which is about torchvision and its own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def compare(student: Student, exported: Predictor, images: Sequence[Path] = ()) -> ExportCheck:
    """Run a student in torch and what was exported of it on images or the synthetic ones."""
    torch_ = TorchPredictor(student)
    difference, equal, pixels, count = 0.0, 0, 0, 0
    for image in map(read_image, images) if images else synthetic_images(student.card.size):
        a, b = torch_.raw(image), exported.raw(image)
        # np.maximum, not max: a NaN must fail the check.
        difference = float(np.maximum(difference, np.abs(a.probabilities - b.probabilities).max()))
        equal += int((a.labels == b.labels).sum())
        pixels += a.labels.size
        count += 1
    return ExportCheck(count, difference, equal / pixels)


def synthetic_images(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Seeded images, smooth with noise, of the input size, smaller, larger, odd and elongated: (H, W, 3) uint8 each."""
    from scipy.ndimage import zoom

    h, w = size
    shapes = [(h, w), (h // 2 + 1, w // 3 + 1), (2 * h + 37, w + 51), (h // 8 + 1, 3 * w + 5), (3 * h + 2, w // 8 + 3)]
    generator = np.random.default_rng(0)
    images = []
    for height, width in shapes:
        coarse = generator.random((4, 5, 3))
        smooth = zoom(coarse, (height / 4, width / 5, 1), order=1, grid_mode=True, mode="nearest")
        noisy = 255 * smooth + generator.normal(0, 20, smooth.shape)
        images.append(noisy.clip(0, 255).astype(np.uint8))
    return images
