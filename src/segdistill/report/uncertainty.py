"""Where the student itself is unsure: the entropy of its probabilities as a picture with a scale."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .figures import REFERENCE, outline

STOPS = 9  # colours of the scale between which the page blends
TINY = np.float32(1e-12)  # 0 log 0 = 0


def uncertainty(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Entropy over the classes of (C, H, W) as a share of the largest, log C: (H, W), 0 (sure) to 255 (all alike)."""
    entropy = np.zeros(probabilities.shape[1:], np.float32)
    for p in probabilities:
        entropy -= p * np.log(np.maximum(p, TINY))
    return np.asarray(np.rint(255 * np.clip(entropy / math.log(len(probabilities)), 0, 1)), dtype=np.uint8)


def uncertainty_map(
    unsure: NDArray[np.uint8], reference: NDArray[np.uint8], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """`uncertainty` (H, W) in colours at `size` (h, w), with the outline of the reference of that size; (h, w, 3)."""
    small = np.asarray(Image.fromarray(unsure).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    picture: NDArray[np.uint8] = _colours()[small]
    picture[outline(reference)] = REFERENCE
    return picture


def scale() -> str:
    """The colours of the map from sure to unsure, as a CSS gradient."""
    stops = _colours()[np.linspace(0, 255, STOPS).round().astype(int)].tolist()
    return "linear-gradient(to right, " + ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in stops) + ")"


@cache
def _colours() -> NDArray[np.uint8]:
    """(256, 3), dark to light: told apart in grey and by every kind of colour blindness."""
    from matplotlib import colormaps

    return np.asarray((colormaps["inferno"](np.arange(256))[:, :3] * 255).round(), dtype=np.uint8)
