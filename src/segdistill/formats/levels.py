"""Intensities of any range to 8 bits by one linear window, and label values to whole numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import UserError

WINDOW = (0.5, 99.5)  # percentiles
NEARLY = 1e-4  # label values stored as scaled integers come back this close to whole, e.g. 0.99999994


def percentile_window(values: NDArray[Any], path: Path) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles of all values, or their whole range where these coincide.

    Raises:
        UserError: a value that is not finite.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise UserError(f"{path}: has values that are not finite numbers; replace them and save it again")
    if values.dtype.kind != "f":  # differences of two integers of one type may not fit it
        values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    window = np.percentile(values, WINDOW)
    if window[0] < window[1]:  # else almost all are equal, e.g. a few bright spots on black
        return float(window[0]), float(window[1])
    return low, high


def to_levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """`low`..`high` linearly to 0..255, rounded to nearest, clipped outside; any shape, slice by slice of axis 0."""
    levels = np.empty(values.shape, np.uint8)
    scale = 255 / max(high - low, 1e-30)
    for part, out in zip(values, levels, strict=True):  # one slice as float64 at a time, not the volume
        scaled = part.astype(np.float64)
        scaled -= low
        scaled *= scale
        out[...] = np.rint(scaled.clip(0, 255))
    return levels


def whole(values: NDArray[Any], path: Path) -> NDArray[np.integer[Any]]:
    """Label values as uint8, else uint16, else int64, whatever holds them (never int32: see `images.is_packed`).

    Raises:
        UserError: fractional (further than 1e-4 from whole) or not finite.
    """
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        if not np.isfinite(values).all() or float(np.abs(values - rounded).max(initial=0)) > NEARLY:
            raise UserError(f"{path}: a mask with fractional values; save whole class numbers, or 0 and 1")
        values = rounded
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    kind = np.uint8 if low >= 0 and high <= 255 else np.uint16 if low >= 0 and high <= 65535 else np.int64
    labels: NDArray[np.integer[Any]] = values.astype(kind)
    return labels
