"""Predict slice by slice: an image is one slice, a volume many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .predictor import Prediction, Predictor
from .tiling import predict_tiled


def predict_slices(
    predictor: Predictor, slices: NDArray[np.uint8], *, tile: bool = False, probabilities: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float16] | None]:
    """Labels (N, H, W) of slices (N, H, W) or (N, H, W, 3), and probabilities (C, N, H, W) if asked for.

    Raises:
        UserError: a student that looks at neighbouring slices, and an image alone or in colour.
    """
    labels = np.empty(slices.shape[:3], np.uint8)
    kept = np.empty((len(predictor.card.classes), *slices.shape[:3]), np.float16) if probabilities else None
    for number in range(len(slices)):
        image = channels(slices, number, predictor.card.neighbours)
        result: Prediction = predict_tiled(predictor, image) if tile else predictor.predict(image)
        labels[number] = result.labels
        if kept is not None:
            kept[:, number] = result.probabilities
    return labels, kept


def channels(slices: NDArray[np.uint8], number: int, neighbours: int) -> NDArray[np.uint8]:
    """One slice as RGB (H, W, 3): grey repeated, or the slices below, at and above as channels."""
    if neighbours:
        if slices.ndim == 4 or len(slices) == 1:
            raise UserError("this student looks at neighbouring slices: give it grey volumes, not single images")
        below, above = max(number - 1, 0), min(number + 1, len(slices) - 1)
        return np.stack([slices[below], slices[number], slices[above]], axis=2)
    return slices[number] if slices.ndim == 4 else np.repeat(slices[number][:, :, None], 3, axis=2)
