"""predict: what one does with a student. From an exported file it imports no torch.

Nor may a type hint here name what does: the command line looks up every name that the hints need.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..deploy.predict import PredictSummary, predict_found
from ..deploy.predictor import open_predictor
from ..deploy.routing import ROUTING, Route
from ..deploy.sources import find_sources
from ..deploy.stages import Engine, Extras
from ..types import one_line
from .terminal import bar, console

SHOWN = 5  # images of uncertain modality that are named on the terminal


def predict(
    student: Path | str,
    images: Sequence[Path | str],
    out: Path | str,
    *,
    probabilities: bool = False,
    overlays: bool = False,
    tile: bool = False,
    dicom_seg: bool = False,
    modality: str | None = None,
    overwrite: bool = False,
    engine: Literal["local", "ray"] = "local",
    device: str = "cpu",
    threads: int | None = None,
) -> PredictSummary:
    """Predict masks at the size of each image or volume; a broken file is reported and skipped.

    Args:
        student: A student's folder, a run's folder, or an .onnx or .xml file of export.
        images: Files, folders (searched with subfolders) and patterns.
        out: Folder for the masks, areas.csv, and predicted.jsonl, which says what each mask was made of. NAME.png holds
            class indices, coloured by a palette; a NIfTI volume or DICOM series becomes NAME.nii.gz in its own
            geometry, an HDF5 volume NAME.h5.
        probabilities: Also write NAME_prob.npz, float16 (classes, H, W) or (classes, slices, H, W).
        overlays: Also write NAME_overlay.png, of a volume up to 25 of its slices.
        tile: Predict in tiles at the original resolution, for images much larger than the input.
        dicom_seg: Write DICOM-SEG for DICOM images; they stay part of the patient's record.
        modality: What made the images, as the student names it. None: a student with controllers per modality finds it
            itself; routing.csv says which, and where it was not sure.
        overwrite: Predict again what is there already. Without it masks of the same file, student and options are kept,
            and no mask of unknown origin, or changed since, is replaced.
        engine: local: this process. ray: the actors of a Ray cluster, each with a predictor of its own (extra `ray`):
            the one of RAY_ADDRESS, else one that runs here, else one that is started for this. The same files come out.
        device: cpu or cuda.
        threads: CPU threads; with ray, of each actor (default: 1).

    Returns:
        How many images were predicted, kept and failed, and why.

    Raises:
        UserError: No image, no student, or the folder cannot be written.
    """
    sources = find_sources(images, Path(out))
    if engine == "local":
        predictor = open_predictor(student_path(student), device, threads, images=len(sources))
    else:  # its card is asked here, the actors compute
        predictor = open_predictor(student_path(student), threads=threads)
    with bar("predicting") as progress:
        result = predict_found(
            predictor,
            sources,
            Path(out),
            Extras(probabilities, overlays, tile, dicom_seg),
            modality=modality,
            overwrite=overwrite,
            engine=_engine(engine, student_path(student), device, threads),
            on_progress=lambda done, total, image: progress(done, total),
        )
    for _, message in result.failed:
        console.print(f"skipped: {message}", markup=False, style="red")
    _warn_of_unsure(result.unsure, Path(out))
    counts = f"{result.written} written, {result.skipped} there already, {len(result.failed)} unreadable"
    console.print(f"{out}: {counts}", markup=False)
    return result


def _engine(name: str, student: Path, device: str, threads: int | None) -> Engine | None:
    if name == "local":
        return None
    from ..deploy.on_ray import ray_engine

    return ray_engine(student, device, threads)


def _warn_of_unsure(unsure: Sequence[Route], out: Path) -> None:
    """A line for each of the first few; then how many there are and what to do."""
    for route in unsure[:SHOWN]:
        said = (
            f"{route.image} was predicted as {route.modality}, of which the student is only {route.confidence:.0%} sure"
        )
        console.print(f"unsure: {one_line(said)}", markup=False, style="yellow")
    if unsure:
        console.print(
            f"warning: unsure of the modality of {len(unsure)} images or volumes, all listed in {out / ROUTING}; "
            "if you know it, predict them again with --modality",
            markup=False,
            style="yellow",
        )


def student_path(path: Path | str) -> Path:
    """A run's folder stands for the student in it."""
    inside = Path(path) / "student"
    return inside if (inside / "student.json").exists() else Path(path)
