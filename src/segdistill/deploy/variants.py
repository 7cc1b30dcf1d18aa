"""A student as a file of any precision and format: made of the fp32 graph, measured, refused where it costs Dice."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..formats import read_image
from ..metrics.overlap import count, overlap_scores
from ..types import UserError
from .export import compare, export_onnx, require_agreement, synthetic_images
from .low_precision import halve, metadata, quantise
from .measure import Cost, measure
from .predictor import Predictor, TorchPredictor, open_predictor, require_threads

if TYPE_CHECKING:
    from .student import Student

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "int8"]
Format = Literal["onnx", "openvino"]
TORCH = "torch fp32"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
MAX_DROP = 0.005  # of the mean Dice against fp32, half a point
CALIBRATED, MEASURED = 32, 200  # images at most, spread evenly over those given


class Sample(NamedTuple):
    """An image to measure on, read when its turn comes."""

    image: Callable[[], NDArray[np.uint8]]  # (H, W, 3)
    reference: Callable[[tuple[int, ...]], NDArray[np.uint8]] | None = None  # (H, W) -> class indices; None: torch's
    scored: tuple[int, ...] | None = None  # foreground classes that the reference would show; None: all


@dataclass(frozen=True)
class Variant:
    """One way to run the student."""

    name: str
    bytes: int
    cost: Cost
    equal: float  # part of all pixels whose label is torch's
    dice: float  # mean over images and foreground classes, against the references; 1 where both are empty


@dataclass(frozen=True)
class Exported:
    """What was written, and what it is worth beside others."""

    images: int
    given: bool  # not the built-in synthetic ones
    labelled: bool  # Dice is against masks of people; else against those of torch
    variants: tuple[Variant, ...]  # torch in fp32 first, what was written last


def export_student(
    student_folder: Path,
    out: Path,
    *,
    images: Sequence[Path] = (),
    labelled: Sequence[Sample] = (),
    precision: Precision = "fp32",
    file_format: Format = "onnx",
    modality: str | None = None,
    threads: int | None = None,
) -> Exported:
    """Write a student to `out` if it loses no more than half a point of Dice against torch in fp32.

    Args:
        student_folder: Of `save_student`.
        out: A name that ends in .onnx, or .xml for OpenVINO, which also writes the .bin beside it.
        images: Calibrate int8, and are measured on where there is nothing labelled.
        labelled: Images with their masks, to measure Dice on; calibrate where there are no `images`.
        precision: bf16 stores weights in 16 bits; OpenVINO also computes in bf16 where the processor can. int8: see
            `quantise`.
        file_format: onnx or openvino.
        modality: Bind the file to this one.
        threads: CPU threads to compare and to measure with; None: all cores.

    Raises:
        UserError: As `export_onnx`; nothing to measure on, openvino is missing, or Dice drops too far. What lay at
            `out` is then as it was.
    """
    _require(out, precision, file_format, bool(images or labelled))
    require_threads(threads)
    images = _spread(images, MEASURED)
    given = [Sample(partial(read_image, path)) for path in images]
    student = _student(student_folder, modality, threads)
    samples = _spread(labelled or given, MEASURED) or [
        Sample(partial(np.copy, image)) for image in synthetic_images(student.card.size)
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as scratch:
            fp32 = Path(scratch) / "fp32.onnx"
            export_onnx(student_folder, fp32, images, modality, threads)
            calibration = (sample.image() for sample in _spread(given or labelled, CALIBRATED))
            files = _files(fp32, precision, file_format, calibration)
            made = next(reversed(files))
            predictors = {name: open_predictor(path, threads=threads) for name, path in files.items()}
            worth = _worth(TorchPredictor(student), predictors, samples)
            _require_dice(made, worth, len(samples))
            if made == "openvino fp32":
                require_agreement(compare(student, predictors[made], images), "openvino")
            files = {TORCH: student_folder} | files
            variants = tuple(
                Variant(name, _size(path), measure(path, threads), *worth[name]) for name, path in files.items()
            )
            _install(files[made], out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error}); choose another place") from error
    return Exported(len(samples), bool(images or labelled), bool(labelled), variants)


def _require(out: Path, precision: Precision, file_format: Format, images: bool) -> None:
    """Refuse at once what would fail late."""
    if out.suffix.lower() != SUFFIXES[file_format]:
        raise UserError(
            f"{out} would not be found by predict; give a name that ends in {SUFFIXES[file_format]}, "
            f"or {'--format openvino' if out.suffix.lower() == SUFFIXES['openvino'] else 'another --format'}"
        )
    if file_format == "openvino" and find_spec("openvino") is None:
        raise UserError("--format openvino needs openvino; install it with: pip install segdistill[openvino]")
    if precision != "fp32" and not images:
        raise UserError(
            f"--precision {precision} is measured on images before it is written; give --images FOLDER, or "
            "--data FOLDER with masks"
        )


def _student(folder: Path, modality: str | None, threads: int | None) -> Student:
    import torch

    from .artefact import bound_student, load_student

    if threads is not None:
        torch.set_num_threads(threads)
    student = load_student(folder)
    return student if modality is None else bound_student(student, modality)


def _spread(given: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly spread."""
    return [given[k * len(given) // min(len(given), most)] for k in range(min(len(given), most))]


def _files(
    fp32: Path, precision: Precision, file_format: Format, calibration: Iterator[NDArray[np.uint8]]
) -> dict[str, Path]:
    """Name of a variant -> file, in the folder of the fp32 graph; the last one is what was asked for."""
    graph = fp32.with_stem(precision)
    if precision == "int8":
        quantise(fp32, graph, calibration)
    elif precision == "bf16":
        halve(fp32, graph)
    files = {"onnxruntime fp32": fp32, f"onnxruntime {precision}": graph}
    if file_format == "openvino":
        from .openvino_file import write_openvino

        source = graph if precision == "int8" else fp32
        files[f"openvino {precision}"] = fp32.with_name(f"{precision}.xml")
        write_openvino(source, files[f"openvino {precision}"], metadata(graph), half=precision == "bf16")
    return files


def _worth(
    torch_: Predictor, others: Mapping[str, Predictor], samples: Sequence[Sample]
) -> dict[str, tuple[float, float]]:
    """Name of a variant -> (part of all pixels with torch's label, mean Dice), of the label maps that ship."""
    pixels, equal, dice = 0, Counter[str](), defaultdict[str, list[float]](list)
    for sample in samples:
        image = sample.image()
        expected = torch_.predict(image).labels
        reference = sample.reference(image.shape[:2]) if sample.reference else expected
        scored = sample.scored or range(1, len(torch_.card.classes))
        pixels += expected.size
        for name, predictor in {TORCH: torch_, **others}.items():
            labels = expected if predictor is torch_ else predictor.predict(image).labels
            equal[name] += int((labels == expected).sum())
            dice[name] += [_dice(labels == k, reference == k) for k in scored]
    return {name: (equal[name] / pixels, float(np.mean(values))) for name, values in dice.items()}


def _dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """1 where both are empty: variants are compared on the same images, and a false alarm must cost something."""
    value = overlap_scores(count(prediction, reference))["dice"]
    return 1.0 if math.isnan(value) else value


def _require_dice(made: str, worth: Mapping[str, tuple[float, float]], images: int) -> None:
    before, after = worth[TORCH][1], worth[made][1]
    if not before - after <= MAX_DROP:
        raise UserError(
            f"nothing written: in {made.split()[1]} the Dice on {images} images is {after:.4f}, not {before:.4f}, and "
            f"{MAX_DROP} less is allowed: give masks (--data), more typical images, or another --precision"
        )


def _size(path: Path) -> int:
    """Bytes of a student's folder or file, with OpenVINO's .bin."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir())
    weights = path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0
    return path.stat().st_size + weights


def _install(made: Path, out: Path) -> None:
    """The .xml last: it names the hash of its .bin."""
    if made.suffix == ".xml":
        made.with_suffix(".bin").replace(out.with_suffix(".bin"))
    made.replace(out)
