"""Predict files and folders: masks, optional probabilities and overlays, a table of areas. Resumable."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import read_image, read_mask, replacing, write_image, write_labels
from ..formats.overlay import overlay
from ..types import UserError
from .card import Card
from .inputs import find_images
from .predictor import Prediction, Predictor
from .tiling import predict_tiled

AREAS = "areas.csv"


class PredictSummary(NamedTuple):
    """What happened to the images."""

    written: int
    skipped: int  # predicted by an earlier run
    failed: list[tuple[Path, str]]  # image, one line


class _Targets(NamedTuple):
    """The files of one image; None: not asked for."""

    mask: Path
    probabilities: Path | None
    overlay: Path | None


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    probabilities: bool = False,
    overlays: bool = False,
    tile: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int, Path], None] | None = None,
) -> PredictSummary:
    """Predict each image and write its files into `out`; `areas.csv` there covers all images, those skipped too.

    Args:
        predictor: Of `open_predictor`.
        inputs: Files, folders, patterns: see `find_images`.
        out: Folder, created where missing. Masks `<name>.png` at the size of the image hold class indices.
        probabilities: Also write `<name>_prob.npz` with "probabilities", float16 (C, H, W).
        overlays: Also write `<name>_overlay.png`.
        tile: Predict in tiles at the original resolution: see `predict_tiled`.
        overwrite: Predict again what has all its files already; without it such an image is skipped.
        on_progress: Called after each image with (number done, number of all, image).

    Returns:
        The counts. An image that cannot be read is in `failed`, and the others are predicted.

    Raises:
        UserError: no image found, a result would replace an image, or `out` cannot be written.
    """
    card = predictor.card
    images = find_images(inputs, out)
    targets = [_targets(out, name, probabilities, overlays) for _, name in images]
    _require_sources_kept([source for source, _ in images], targets)
    written, skipped, failed, areas = 0, 0, [], []
    for done, ((source, name), target) in enumerate(zip(images, targets, strict=True), start=1):
        earlier = not overwrite and all(path is None or path.exists() for path in target)
        try:
            if earlier:
                labels = _earlier_labels(target.mask, card)
            else:
                image = read_image(source)
                prediction = predict_tiled(predictor, image) if tile else predictor.predict(image)
                labels = prediction.labels
        except UserError as error:
            failed.append((source, str(error)))
        else:
            if not earlier:
                _write(target, image, prediction, card)
            written, skipped = written + (not earlier), skipped + earlier
            areas += _areas(name, labels, card)
        if on_progress:
            on_progress(done, len(images), source)
    _write_areas(out / AREAS, areas)
    return PredictSummary(written, skipped, failed)


def _targets(out: Path, name: Path, probabilities: bool, overlays: bool) -> _Targets:
    def beside(ending: str) -> Path:
        return out / name.with_name(name.name + ending)

    return _Targets(
        beside(".png"), beside("_prob.npz") if probabilities else None, beside("_overlay.png") if overlays else None
    )


def _require_sources_kept(sources: Sequence[Path], targets: Sequence[_Targets]) -> None:
    """No result may take the place of an image, also where case does not count."""
    images = {str(source.resolve()).casefold() for source in sources}
    for path in (path for target in targets for path in target if path is not None):
        if str(path.resolve()).casefold() in images:
            raise UserError(f"the result {path} would replace the image of that name; choose another output folder")


def _earlier_labels(mask: Path, card: Card) -> NDArray[np.uint8]:
    labels = read_mask(mask)
    if labels.max() >= len(card.classes):
        classes = f"{len(card.classes)} classes, but the value {labels.max()} is in it"
        raise UserError(f"{mask} is not from this student ({classes}); use --overwrite or another output folder")
    return labels.astype(np.uint8)


def _write(target: _Targets, image: NDArray[np.uint8], prediction: Prediction, card: Card) -> None:
    """Each file appears complete or not at all; the mask comes last."""
    try:
        target.mask.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target.mask.parent} ({error.strerror}); choose another") from error
    if target.probabilities:
        with replacing(target.probabilities) as file:
            np.savez_compressed(file, probabilities=prediction.probabilities.astype(np.float16))
    if target.overlay:
        write_image(target.overlay, overlay(image, prediction.labels, card.colours))
    write_labels(target.mask, prediction.labels, card.colours)


def _areas(name: Path, labels: NDArray[np.uint8], card: Card) -> list[tuple[str, str, int, str]]:
    """One row per class: image (the mask's name without suffix), class, pixels, fraction of the image."""
    pixels = np.bincount(labels.ravel(), minlength=len(card.classes)).tolist()
    return [(name.as_posix(), c, n, f"{n / labels.size:.6f}") for c, n in zip(card.classes, pixels, strict=True)]


def _write_areas(path: Path, areas: Sequence[tuple[str, str, int, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "class", "pixels", "fraction"))
    writer.writerows(areas)
    path.parent.mkdir(parents=True, exist_ok=True)  # there is none if every image failed
    with replacing(path) as file:
        file.write(text.getvalue().encode())
