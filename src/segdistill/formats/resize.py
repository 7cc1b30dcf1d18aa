"""The one resize of cache, predict and export: antialiased bilinear for images, nearest for labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import UserError
from .images import MAX_PIXELS


def resize_image(image: NDArray[np.uint8], size: tuple[int, int], fit: str) -> NDArray[np.uint8]:
    """Image (H, W, 3) to (h, w, 3), `size` = (h, w): Pillow's bilinear, whose filter widens when it shrinks.

    `fit` is "squash" (both axes to size) or "pad" (zeros at the bottom or right to the target's aspect ratio first).
    The input itself is returned where nothing changes.

    Raises:
        UserError: an unknown `fit`, or padding beyond MAX_PIXELS.
    """
    return _resize(image, size, fit, Image.Resampling.BILINEAR)


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int], fit: str) -> NDArray[np.uint8]:
    """Label map (H, W) to (h, w): nearest with half-pixel centres, padding is background; else as `resize_image`."""
    return _resize(labels, size, fit, Image.Resampling.NEAREST)


def padded_shape(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (H', W') that holds H x W at the aspect ratio of `size` = (h, w), rounded up to whole pixels."""
    h, w = size
    return max(height, -(-width * h // w)), max(width, -(-height * w // h))


def _resize(
    array: NDArray[np.uint8], size: tuple[int, int], fit: str, resampling: Image.Resampling
) -> NDArray[np.uint8]:
    if fit not in ("squash", "pad"):
        raise UserError(f'unknown fit "{fit}"; choose squash or pad')
    if fit == "pad":
        array = _pad(array, padded_shape(array.shape[0], array.shape[1], size))
    if array.shape[:2] == tuple(size):
        return array
    height, width = size
    return np.array(Image.fromarray(np.ascontiguousarray(array)).resize((width, height), resampling))


def _pad(array: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = array.shape[:2]
    if (height, width) == shape:
        return array
    if shape[0] * shape[1] > MAX_PIXELS:
        raise UserError(f"an image of {width}x{height} pixels is too long to pad; crop it or use --fit squash")
    padding: list[Any] = [(0, shape[0] - height), (0, shape[1] - width)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, padding)
