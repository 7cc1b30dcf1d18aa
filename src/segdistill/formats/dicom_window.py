"""A slice of a DICOM series without a window looks the same wherever it is read: alone in training, or with its series.

A file's series is what lies beside it in its folder. What of a folder is read is remembered until files come or go.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np

from ..types import UserError
from . import dicom
from .dicom_series import Series, sort_out
from .guard import check_voxels
from .levels import percentile_window

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")  # compare in lower case

_lock = Lock()  # of the threads that read the slices of a series, the first finds its window, the others wait


def series_window(path: Path) -> tuple[float, float] | None:
    """What `read_series` shows the series of this file by: the percentile window that all its files share.

    None where each file has its own window, where the file is of no series, or where a file of it cannot be read.
    """
    if path.suffix.lower() not in DICOM_SUFFIXES:
        return None
    with _lock:
        try:
            changed = path.parent.stat().st_mtime_ns
            series = _series_in(path.parent, changed).get(path)
            return _window(series.files[0], changed) if series else None
        except OSError:  # whoever reads the file says so
            return None


def dicom_files(folder: Path) -> list[Path]:
    """Those of a folder that may be of one series, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in DICOM_SUFFIXES)


@lru_cache(maxsize=16)
def _series_in(folder: Path, changed: int) -> dict[Path, Series]:
    return {path: series for series in sort_out(dicom_files(folder)).series for path in series.files}


@lru_cache(maxsize=4096)
def _window(first: Path, changed: int) -> tuple[float, float] | None:
    """Of the series that begins with this file."""
    files = _series_in(first.parent, changed)[first].files
    try:
        if all(map(dicom.has_window, files)):
            return None
        header = dicom.read_header(first)
        check_voxels(first, (len(files), header.rows, header.columns))
        pixels = [dicom.read_values(path).pixels for path in files]
        return percentile_window(np.stack(pixels), first) if all(one.ndim == 3 for one in pixels) else None
    except UserError:  # a file that is damaged says so where it is read itself
        return None
