"""Label maps drawn over their images: a tint that lets the image through and an outline that shows the edge exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def overlay(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]], alpha: float = 0.3
) -> NDArray[np.uint8]:
    """Image (H, W, 3) with every class but 0 tinted in its colour (a share `alpha` of it) and outlined in full colour.

    The outline is 1 pixel wide and lies inside the object: its pixels with a neighbour (of 4) of another class.
    Returns a new array (H, W, 3).

    Raises:
        ValueError: image and labels differ in size, or a class has no colour.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image of {image.shape[:2]} and labels of {labels.shape} pixels; they must be the same")
    if labels.size and int(labels.max()) >= len(colours):
        raise ValueError(f"class index {int(labels.max())} has no colour: {len(colours)} were given")
    objects = labels > 0
    strength = np.where(outline(labels), 1.0, alpha)[objects, None]
    colour = np.asarray(colours, dtype=np.float64)[labels[objects]]
    drawn = image.copy()
    drawn[objects] = np.rint((1 - strength) * image[objects] + strength * colour).astype(np.uint8)
    return drawn


def montage(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Images (H, W, 3) of one size in a grid about as wide as high; places left over are black."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    height, width = images[0].shape[:2]
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, image in enumerate(images):
        y, x = divmod(number, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = image
    return sheet


def outline(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels of (H, W) labels that have a neighbour of another class, of 4; the image's border is no edge."""
    edge = np.zeros(labels.shape, dtype=bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge
