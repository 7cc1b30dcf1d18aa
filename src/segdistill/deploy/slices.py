"""Predict slice by slice: an image is one slice, a volume many."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .predictor import Prediction, Predictor
from .tiling import predict_tiled


class Slices(NamedTuple):
    """What was predicted for N slices."""

    labels: NDArray[np.uint8]  # (N, H, W)
    probabilities: NDArray[np.float16] | None  # (C, N, H, W) if asked for
    routing: NDArray[np.float32] | None  # (M,) of the modalities, where the student had to find its own


def predict_slices(
    predictor: Predictor,
    slices: NDArray[np.uint8],
    *,
    tile: bool = False,
    probabilities: bool = False,
    modality: int | None = None,
) -> Slices:
    """Predict slices (N, H, W) or (N, H, W, 3) of one modality, the one told or the one found for all of them.

    Raises:
        UserError: a student that looks at neighbouring slices, and an image alone or in colour.
    """
    images = partial(channels, slices, neighbours=predictor.card.neighbours)
    routing = None
    if predictor.routes and modality is None and (tile or len(slices) > 1):
        routing = route_together(predictor, map(images, range(len(slices))))
        modality = int(routing.argmax())
    labels = np.empty(slices.shape[:3], np.uint8)
    kept = np.empty((len(predictor.card.classes), *slices.shape[:3]), np.float16) if probabilities else None
    for number in range(len(slices)):
        image = images(number)
        result: Prediction = (
            predict_tiled(predictor, image, modality=modality) if tile else predictor.predict(image, modality)
        )
        labels[number] = result.labels
        if kept is not None:
            kept[:, number] = result.probabilities
        if modality is None:
            routing = result.routing
    return Slices(labels, kept, routing)


def route_together(predictor: Predictor, images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The mean over images of one origin of the probabilities of the modalities, (M,)."""
    found: NDArray[np.float32] = np.mean([predictor.route(image) for image in images], axis=0)
    return found


def channels(slices: NDArray[np.uint8], number: int, neighbours: int) -> NDArray[np.uint8]:
    """One slice as RGB (H, W, 3): grey repeated, or the slices below, at and above as channels."""
    if neighbours:
        if slices.ndim == 4 or len(slices) == 1:
            raise UserError("this student looks at neighbouring slices: give it grey volumes, not single images")
        below, above = max(number - 1, 0), min(number + 1, len(slices) - 1)
        return np.stack([slices[below], slices[number], slices[above]], axis=2)
    return slices[number] if slices.ndim == 4 else np.repeat(slices[number][:, :, None], 3, axis=2)
