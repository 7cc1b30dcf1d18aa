"""What a DICOM file says of how its grey values are shown: a VOI LUT or a window, to 8 bits (PS3.3 C.11.2).

Both are ours, not pydicom's: its `apply_voi` counts in the table's own type, where values before the first entry wrap
round, and so do entries beyond 255 of a table of 8-bit values; its `apply_windowing` gives stored values back, so that
black lies above white where the rescale slope is negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .levels import to_levels


def has_voi(tables: Any) -> bool:
    """Whether a pydicom Dataset has a VOI LUT or a usable window."""
    return bool(tables.get("VOILUTSequence")) or _window(tables) is not None


def windowed(values: NDArray[Any], tables: Any) -> NDArray[np.uint8] | None:
    """Rescaled values (H, W) to 8 bits by the first VOI LUT, else the first window of a pydicom Dataset.

    None where there is neither (a width below 1 is none). Of a table the least entry is black, the greatest white.

    Raises:
        ValueError: a table with fewer entries than it says; a function that the standard does not have.
    """
    if tables.get("VOILUTSequence"):
        return _looked_up(values, tables)
    window = _window(tables)
    return None if window is None else _in_window(values, *window, _function(tables))


def _in_window(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[np.uint8]:
    """The three functions of PS3.3 C.11.2.1.2.1 and C.11.2.1.3, with an output of 0..255."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far outside the window
            return to_levels(1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width)), 0.0, 1.0)
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError("a VOI LUT function that the standard does not have")
    if function == "LINEAR":  # its window counts whole values: one of width 1 is a step
        centre, width = centre - 0.5, width - 1
    return to_levels(values, centre - width / 2, centre + width / 2)


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


def _window(tables: Any) -> tuple[float, float] | None:
    """Centre and width; None where there is none that can be used."""
    centre, width = _first(tables.get("WindowCenter")), _first(tables.get("WindowWidth"))
    if centre is None or width is None or not (width >= 1 if _function(tables) == "LINEAR" else width > 0):
        return None
    return centre, width


def _function(tables: Any) -> str:
    return str(tables.get("VOILUTFunction") or "LINEAR").upper()


def _first(number: Any) -> float | None:
    """Of one or several numbers; None where there is none."""
    first = next(iter(number), None) if isinstance(number, Sequence) and not isinstance(number, str) else number
    return None if first is None else float(first)
