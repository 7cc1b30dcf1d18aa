"""From probabilities to the final label map. One place, so that torch, ONNX and tiles agree. Imports no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .card import Card


def decide(probabilities: NDArray[np.float32], card: Card) -> NDArray[np.uint8]:
    """(C, H, W) -> (H, W): p[1] >= threshold for two classes, else the most probable, the first of equals."""
    chosen = probabilities[1] >= card.threshold if len(probabilities) == 2 else probabilities.argmax(0)
    return np.asarray(chosen, np.uint8)


def postprocess(labels: NDArray[np.uint8], card: Card) -> NDArray[np.uint8]:
    """The label map as the card wants it: unchanged, or per foreground class its largest 8-connected component."""
    if card.postprocess == "none":
        return labels
    from scipy import ndimage

    kept = np.zeros_like(labels)
    for index in range(1, len(card.classes)):
        components, count = ndimage.label(labels == index, structure=np.ones((3, 3)))
        if count:
            pixels = np.bincount(components.ravel())
            kept[components == 1 + pixels[1:].argmax()] = index
    return kept
