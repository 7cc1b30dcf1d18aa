"""What every reader of foreign files shares: one-line errors that name the file, the limit on voxels, the extras."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..types import UserError

MAX_VOXELS = 500_000_000  # of one file; decoding takes up to 8 bytes per voxel for a moment


def require_file(path: Path, expected: str) -> None:
    """Raise `UserError` unless `path` is a file with something in it; `expected` says of what kind."""
    if not path.is_file():  # also keeps us from waiting on a pipe
        state = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{path}: {state}; expected {expected}")
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty (0 bytes); copy it again")


@contextmanager
def reading(path: Path, kind: str, *, quote: bool = True) -> Iterator[None]:
    """Whatever fails inside becomes one `UserError`; `quote=False` leaves out the library's text, which may hold data.

    The libraries raise a dozen kinds on damaged files, from struct.error to KeyError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = reason(error) if quote or isinstance(error, OSError) else type(error).__name__
        raise UserError(f"{path}: cannot be read as {kind} ({text}); copy it again, or convert it") from error


def check_voxels(path: Path, shape: Sequence[int]) -> None:
    """Raise `UserError` where a header claims an empty array or more than MAX_VOXELS values."""
    count, sides = math.prod(shape), "x".join(map(str, shape))
    if count <= 0 or min(shape) <= 0:
        raise UserError(f"{path}: an array of {sides} holds nothing; copy it again")
    if count > MAX_VOXELS:
        raise UserError(f"{path}: {sides} voxels; at most {MAX_VOXELS:,} are read: crop it or split it into files")


def extra(name: str, path: Path) -> Any:
    """The optional library `name`, imported now.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise UserError(f"{path}: needs {library}; install it with: pip install segdistill[medical]") from error


def reason(error: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
