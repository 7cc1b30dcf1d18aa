"""What the process does with memory that tensors have left."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # glibc's malloc.h
PAD = 64 * 1024**2
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor, in this process from now on.

    By itself it gives each tensor above 32 MB back to the system at once and asks for it anew, page by page, at the
    next operation, a large part of a training step on a CPU (benchmarks/freed_memory.py). Elsewhere than in glibc this
    does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    for parameter, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER), (TOP_PAD, PAD)):
        mallopt(parameter, value)
