"""One image -> one row of scores per foreground class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .overlap import Counts, count, overlap_scores
from .surface import assd, hd95, nsd, surface_distances

OVERLAP_METRICS = ("dice", "iou", "precision", "recall", "specificity")
SURFACE_METRICS = ("hd95", "assd", "nsd")
METRICS = OVERLAP_METRICS + SURFACE_METRICS


def score_image(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    *,
    classes: int,
    annotated: Sequence[bool] | None = None,
    spacing: Sequence[float] | None = None,
    tolerance: float = 2.0,
) -> list[dict[str, Any]]:
    """Score label maps (H, W) or (D, H, W) of class indices; one dict per annotated foreground class.

    Keys: "class", the names in METRICS, "tp", "fp", "fn", "tn", "empty_reference", "empty_prediction".
    Both masks empty: all metrics but specificity are NaN (to be excluded and counted). One empty: Dice, IoU, precision,
    recall and NSD are 0, HD95 and ASSD the diagonal of the image. So a miss costs, always.

    Args:
        prediction: Class indices, 0 = background.
        reference: Class indices, same shape.
        classes: Number of classes, background included.
        annotated: (classes,) whether the reference marks this class; default all. The others get no row.
        spacing: Size of a voxel per axis; default 1. The unit of HD95, ASSD and the tolerance.
        tolerance: Distance up to which a boundary counts as met by NSD.

    Raises:
        UserError: the shapes differ, the spacing does not fit, or a map holds a value that is no class.
    """
    spacing = (1.0,) * reference.ndim if spacing is None else spacing
    _check(prediction, reference, classes, spacing)
    if reference.ndim == 3 and len(reference) == 1:  # one slice is an image: its area is no surface
        prediction, reference, spacing = prediction[0], reference[0], spacing[1:]
    return [
        _score_class(k, prediction == k, reference == k, spacing, tolerance)
        for k in range(1, classes)
        if annotated is None or annotated[k]
    ]


def _score_class(
    index: int, prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> dict[str, Any]:
    counts = count(prediction, reference)
    return {
        "class": index,
        **overlap_scores(counts),
        **_surface_scores(counts, prediction, reference, spacing, tolerance),
        **asdict(counts),
        "empty_reference": counts.empty_reference,
        "empty_prediction": counts.empty_prediction,
    }


def _surface_scores(
    counts: Counts,
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance: float,
) -> dict[str, float]:
    if counts.empty_reference and counts.empty_prediction:
        return dict.fromkeys(SURFACE_METRICS, math.nan)
    if counts.empty_reference or counts.empty_prediction:
        diagonal = math.hypot(*(n * step for n, step in zip(reference.shape, spacing, strict=True)))
        return {"hd95": diagonal, "assd": diagonal, "nsd": 0.0}
    forth, back = surface_distances(prediction, reference, spacing)
    return {"hd95": hd95(forth, back), "assd": assd(forth, back), "nsd": nsd(forth, back, tolerance)}


def _check(
    prediction: NDArray[np.integer], reference: NDArray[np.integer], classes: int, spacing: Sequence[float]
) -> None:
    if prediction.shape != reference.shape:
        raise UserError(
            f"prediction is {_size(prediction)}, reference is {_size(reference)}; "
            "they must have one size: predict at the size of the reference"
        )
    if reference.size == 0:
        raise UserError(f"prediction and reference are {_size(reference)}: no pixel to score; leave this image out")
    if len(spacing) != reference.ndim or min(spacing) <= 0:
        raise UserError(
            f"spacing is {tuple(spacing)}; expected {reference.ndim} positive sizes, one per axis of the image"
        )
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"{name} has values {np.unique(labels)[:8].tolist()}; expected class indices 0..{classes - 1}: "
                "give the names of all classes, or map the values first"
            )


def _size(labels: NDArray[np.integer]) -> str:
    return " x ".join(map(str, labels.shape))
