"""What a DICOM file says of how its grey values are shown: a VOI LUT or a window, to 8 bits (PS3.3 C.11.2).

The look-up is ours, not pydicom's: its `apply_voi` counts in the table's own type, where values before the first entry
wrap round, and so do entries beyond 255 of a table of 8-bit values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .levels import to_levels


def has_voi(tables: Any) -> bool:
    """Whether a pydicom Dataset has a VOI LUT or a usable window."""
    return bool(tables.get("VOILUTSequence")) or _has_window(tables)


def windowed(values: NDArray[Any], tables: Any) -> NDArray[np.uint8] | None:
    """Rescaled values (H, W) to 8 bits by the first VOI LUT, else the first window of a pydicom Dataset.

    None where there is neither (a width below 1 is none). Of a table the least entry is black, the greatest white.

    Raises:
        ValueError: a table with fewer entries than it says, or none.
    """
    if tables.get("VOILUTSequence"):
        return _looked_up(values, tables)
    if not _has_window(tables):
        return None
    from pydicom.pixels.processing import apply_windowing

    with np.errstate(over="ignore"):  # a sigmoid far outside its window
        ends = apply_windowing(np.array([-(2**40), 2**40]), tables)  # what lies below and above the window
        return to_levels(apply_windowing(values, tables), float(ends.min()), float(ends.max()))


def _looked_up(values: NDArray[Any], tables: Any) -> NDArray[np.uint8]:
    item = tables.VOILUTSequence[0]
    count, first = int(item.LUTDescriptor[0]) % 2**16 or 2**16, int(item.LUTDescriptor[1])
    if first >= 2**15 and _least(tables) < 0:  # written, or read, as if it had no sign
        first -= 2**16
    table = _entries(item.LUTData, tables)[:count]
    if len(table) < count:
        raise ValueError("a VOI LUT with fewer entries than it says")
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return to_levels(table[places], float(table.min()), float(table.max()))


def _entries(data: Any, tables: Any) -> NDArray[np.int64]:
    if isinstance(data, bytes):  # pydicom leaves OW as it lies in the file
        order = "<" if tables.file_meta.TransferSyntaxUID.is_little_endian else ">"
        return np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype(np.int64)
    return np.atleast_1d(np.asarray(data, np.int64))


def _least(tables: Any) -> float:
    """Below no value of the file: negative where values after rescale have a sign."""
    if tables.get("ModalityLUTSequence"):
        return 0.0
    bits, signed = int(tables.get("BitsStored") or 16), bool(tables.get("PixelRepresentation"))
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], np.float64)
    slope, intercept = tables.get("RescaleSlope"), tables.get("RescaleIntercept")
    return float((ends if slope is None or intercept is None else ends * float(slope) + float(intercept)).min())


def _has_window(tables: Any) -> bool:
    centre, width = tables.get("WindowCenter"), tables.get("WindowWidth")
    first = width[0] if isinstance(width, Sequence) and width else width
    exact = str(tables.get("VOILUTFunction") or "LINEAR").upper() != "LINEAR"
    return centre is not None and first is not None and (float(first) > 0 if exact else float(first) >= 1)
