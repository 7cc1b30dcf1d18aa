"""Images much larger than the student's input: overlapping tiles at the original resolution, blended."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .labels import decide, postprocess
from .predictor import Prediction, Predictor


def predict_tiled(
    predictor: Predictor, image: NDArray[np.uint8], overlap: float = 0.25, modality: int | None = None
) -> Prediction:
    """Predict tiles of the student's input size and average their probabilities, each tile strongest at its centre.

    Args:
        predictor: Sees every tile unscaled.
        image: RGB (H, W, 3); where it is smaller than a tile, it is continued by reflection.
        overlap: Least part of a tile that its neighbour shares, in [0, 1).
        modality: Of the whole image, as `predictor.predict` takes it; None: each tile is routed by itself.

    Returns:
        As `predictor.predict`. Holds one float32 (C, H, W) array, whatever the number of tiles.
    """
    card = predictor.card
    height, width = image.shape[:2]
    size = card.size
    padding = [(0, max(0, t - n)) for t, n in zip(size, (height, width), strict=True)]
    image = np.pad(image, [*padding, (0, 0)], mode="symmetric")  # "reflect" fails on an axis of one pixel
    rows, columns = (tile_starts(n, t, overlap) for n, t in zip(image.shape[:2], size, strict=True))
    row_window, column_window = (window(t) for t in size)
    total = np.zeros((len(card.classes), *image.shape[:2]), np.float32)
    blend = row_window[:, None] * column_window
    for y in rows:
        for x in columns:
            here = (slice(y, y + size[0]), slice(x, x + size[1]))
            total[:, *here] += predictor.predict(image[here], modality).probabilities * blend
    # Tiles form a grid, so the sum of their weights is the product of a sum per axis.
    total /= coverage(rows, row_window)[:, None]
    total /= coverage(columns, column_window)
    probabilities = total[:, :height, :width]
    return Prediction(postprocess(decide(probabilities, card), card), probabilities)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Evenly spread first pixels of the tiles along an axis; the first tile starts it, the last one ends it."""
    stride = max(1, int(tile * (1 - overlap)))
    count = 1 + -(-(length - tile) // stride)
    return [round(float(start)) for start in np.linspace(0, length - tile, count)]


def window(tile: int) -> NDArray[np.float32]:
    """A Hann window taken between its samples, so that no weight is zero."""
    return (np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2).astype(np.float32)


def coverage(starts: list[int], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of the tiles' weights at every pixel of the axis that they cover."""
    total = np.zeros(starts[-1] + len(weights), np.float32)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
