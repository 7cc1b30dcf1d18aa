"""Predict files and folders: masks, optional probabilities and overlays, a table of areas. Resumable."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import replacing, write_image
from ..formats.overlay import montage, overlay
from ..types import UserError
from .card import Card
from .predictor import Predictor
from .routing import ROUTING, UNSURE, Route, modality_number, note_route, read_routes, route_of, write_routes
from .slices import predict_slices
from .sources import Source, find_sources, read_slices, read_written, spacing_of, suffix_of, write_slices

AREAS = "areas.csv"
SHOWN = 25  # slices of a volume in its overlay

Area = tuple[str, str, int, str, str]


class PredictSummary(NamedTuple):
    """What happened to the images and volumes."""

    written: int
    skipped: int  # predicted by an earlier run
    failed: list[tuple[Path, str]]  # image, one line
    unsure: list[Route]  # the student is not sure of their modality, those of an earlier run included


class Extras(NamedTuple):
    """What to write beside the masks, and how."""

    probabilities: bool = False
    overlays: bool = False
    tile: bool = False
    dicom_seg: bool = False


class _Targets(NamedTuple):
    """The files of one source; None: not asked for."""

    mask: Path
    probabilities: Path | None
    overlay: Path | None


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: Path,
    extras: Extras | None = None,
    *,
    modality: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int, Path], None] | None = None,
) -> PredictSummary:
    """Predict each image or volume and write its files into `out`; `areas.csv` there covers all, those skipped too.

    Of a student that tells modalities apart, `routing.csv` says which one each image or volume was predicted as.

    Args:
        predictor: Of `open_predictor`.
        inputs: Files, folders, patterns: see `find_images`.
        out: Folder, created where missing. Masks hold class indices at the size of their source: `<name>.png` of an
            image, `<name>.nii.gz` of a NIfTI volume or a DICOM series or multi-frame file, `<name>.h5` of HDF5.
        extras: probabilities: also `<name>_prob.npz` with "probabilities", float16 (C, H, W) or (C, N, H, W).
            overlays: also `<name>_overlay.png`, of a volume up to 25 of its slices. tile: see `predict_tiled`.
            dicom_seg: for DICOM, `<name>.dcm` (DICOM-SEG) instead.
        modality: Of all the images; None: the student finds it, once for a volume or a tiled image.
        overwrite: Predict again what has all its files already; without it such a source is skipped, unless it was
            predicted as another modality than the one told.
        on_progress: Called after each source with (number done, number of all, its first file).

    Returns:
        The counts. A source that cannot be read is in `failed`, and the others are predicted.

    Raises:
        UserError: nothing found, a result would replace a source, no such modality, or `out` cannot be written.
    """
    extras = extras or Extras()
    told = modality_number(predictor, modality)
    sources = find_sources(inputs, out)
    _require_sources_kept(sources, out, extras)
    written, skipped, failed, areas = 0, 0, [], []
    routes = read_routes(out / ROUTING) if predictor.routes else {}
    for done, source in enumerate(sources, start=1):
        name = source.name.as_posix()
        try:
            target = _targets(out, source, extras)
            earlier = not overwrite and all(path is None or path.exists() for path in target)
            if modality is not None and name in routes:
                earlier = earlier and routes[name].modality == modality
            result = read_written(target.mask, predictor.card) if earlier else _predict(predictor, source, extras, told)
        except UserError as error:
            failed.append((source.files[0], str(error)))
        else:
            if isinstance(result, _Predicted):
                if predictor.routes:
                    routes[name] = route_of(predictor, name, result.routing, told)
                    note_route(out / ROUTING, routes[name])
                _write(target, source, result, predictor.card)
                result = result.labels
            areas += _areas(source, result, predictor.card)
            written, skipped = written + (not earlier), skipped + earlier
        if on_progress:
            on_progress(done, len(sources), source.files[0])
    _write_areas(out / AREAS, areas)
    kept = [routes[name] for source in sources if (name := source.name.as_posix()) in routes]
    if predictor.routes:
        write_routes(out / ROUTING, kept)
    return PredictSummary(written, skipped, failed, [route for route in kept if route.decided_by == UNSURE])


class _Predicted(NamedTuple):
    slices: NDArray[np.uint8]  # (N, H, W) or (N, H, W, 3)
    labels: NDArray[np.uint8]  # (N, H, W)
    probabilities: NDArray[np.float16] | None  # (C, N, H, W)
    routing: NDArray[np.float32] | None  # (M,), where the student had to find the modality


def _targets(out: Path, source: Source, extras: Extras) -> _Targets:
    def beside(ending: str) -> Path:
        return out / source.name.with_name(source.name.name + ending)

    return _Targets(
        beside(suffix_of(source, dicom_seg=extras.dicom_seg)),
        beside("_prob.npz") if extras.probabilities else None,
        beside("_overlay.png") if extras.overlays else None,
    )


def _require_sources_kept(sources: Sequence[Source], out: Path, extras: Extras) -> None:
    """No result may take the place of an image, also where case does not count."""
    images = {str(file.resolve()).casefold() for source in sources for file in source.files}
    for source in sources:
        try:
            targets = _targets(out, source, extras)
        except UserError:
            continue  # its header cannot be read: it fails in its turn
        for path in (path for path in targets if path is not None):
            if str(path.resolve()).casefold() in images:
                raise UserError(f"the result {path} would replace the image of that name; choose another output folder")


def _predict(predictor: Predictor, source: Source, extras: Extras, told: int | None) -> _Predicted:
    slices = read_slices(source)
    try:
        return _Predicted(
            slices,
            *predict_slices(predictor, slices, tile=extras.tile, probabilities=extras.probabilities, modality=told),
        )
    except UserError as error:
        raise UserError(f"{source.files[0]}: {error}") from None


def _write(target: _Targets, source: Source, predicted: _Predicted, card: Card) -> None:
    """Each file appears complete or not at all; the mask comes last."""
    slices, labels, probabilities, _ = predicted
    try:
        target.mask.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target.mask.parent} ({error.strerror}); choose another") from error
    if target.probabilities and probabilities is not None:
        with replacing(target.probabilities) as file:
            flat = target.mask.suffix == ".png"
            np.savez_compressed(file, probabilities=probabilities[:, 0] if flat else probabilities)
    if target.overlay:
        write_image(target.overlay, _overlay(slices, labels, card))
    write_slices(target.mask, labels, source, card)


def _overlay(slices: NDArray[np.uint8], labels: NDArray[np.uint8], card: Card) -> NDArray[np.uint8]:
    """The image with its classes in colour; of a volume evenly spread slices, side by side."""
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), SHOWN)).astype(int))
    coloured = slices if slices.ndim == 4 else np.repeat(slices[..., None], 3, axis=3)
    return montage([overlay(coloured[k], labels[k], card.colours) for k in chosen])


def _areas(source: Source, labels: NDArray[np.uint8], card: Card) -> list[Area]:
    """One row per class: name (without suffix), class, pixels, fraction, mm2 of an image or mm3 of a volume."""
    spacing = spacing_of(source)
    voxel = math.prod(spacing) if spacing and (len(spacing) == 3 or len(labels) == 1) else None
    foreground = [int(np.count_nonzero(labels == k)) for k in range(1, len(card.classes))]
    pixels = [labels.size - sum(foreground), *foreground]  # numpy's bincount would make 8 bytes of each pixel
    name = source.name.as_posix()
    return [
        (name, c, n, f"{n / labels.size:.6f}", "" if voxel is None else f"{n * voxel:.6g}")
        for c, n in zip(card.classes, pixels, strict=True)
    ]


def _write_areas(path: Path, areas: Sequence[Area]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "class", "pixels", "fraction", "mm2_or_mm3"))
    writer.writerows(areas)
    path.parent.mkdir(parents=True, exist_ok=True)  # there is none if every image failed
    with replacing(path) as file:
        file.write(text.getvalue().encode())
