"""A teacher's embeddings of images that are not augmented, kept on disk: computed once, then read.

Half precision, one memory-mapped file with a checksum per row: what a kill, a power cut or another process left half
written is computed again. Space is reserved before anything is computed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..types import UserError

EMPTY = 0  # checksum of a row that is not there
CHUNK = 2**24  # bytes of zeros written at once where a system cannot reserve space


def weights_key(*modules: nn.Module) -> str:
    """A hash of all parameters and buffers: embeddings of other weights are other embeddings."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class EmbeddingCache:
    """Embeddings of numbered rows, each of one shape, in a folder.

    Args:
        folder: Where they are kept; made if it is not there, used again if it is.
        rows: Numbers of the rows, ascending.
        shape: (C, h, w) of an embedding.

    Raises:
        UserError: the disk is too small or cannot be written.
    """

    def __init__(self, folder: Path, rows: Sequence[int], shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.rows = np.asarray(rows, np.int64)
        self.shape = shape
        self.bytes = 2 * len(rows) * math.prod(shape)
        self.key = ""
        try:
            if not self._fits():
                self._create()
            self.values = np.memmap(folder / "values.f16", np.float16, "r+", shape=(len(rows), *shape))
            self.checks = np.memmap(folder / "checks.u32", np.uint32, "r+", shape=(len(rows),))
        except OSError as error:
            raise UserError(
                f"{folder}: cannot keep {self.bytes / 1e9:.2f} GB of embeddings ({error.strerror or error}); "
                "free some space, or leave --esp_medsam.cached false"
            ) from error

    def use(self, key: str) -> None:
        """Say whose embeddings these are (`weights_key`); those of another teacher are dropped."""
        file = self.folder / "key.txt"
        if not file.exists() or file.read_text(encoding="utf-8") != key:
            self.checks[:] = EMPTY
            file.write_text(key, encoding="utf-8")
        self.key = key

    def look_up(self, index: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeddings (B, C, h, w) of the rows (B,), float32 on its device, rounded to half precision.

        `compute` makes those that are missing, of places (n,) in the batch.
        """
        slots = np.searchsorted(self.rows, index.cpu().numpy())
        missing = [place for place, slot in enumerate(slots) if not self._holds(slot)]
        if missing:
            made = compute(torch.tensor(missing, device=index.device)).detach().half().cpu().numpy()
            for place, value in zip(missing, made, strict=True):
                self.values[slots[place]] = value
                self.checks[slots[place]] = _check(value)
        return torch.from_numpy(np.asarray(self.values[slots])).to(index.device).float()

    def _holds(self, slot: int) -> bool:
        check = int(self.checks[slot])
        return check != EMPTY and check == _check(self.values[slot])

    def _layout(self) -> str:
        rows = hashlib.sha256(self.rows.tobytes()).hexdigest()
        return json.dumps({"rows": rows, "shape": self.shape})

    def _fits(self) -> bool:
        file = self.folder / "layout.json"
        return file.exists() and file.read_text(encoding="utf-8") == self._layout()

    def _create(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        free = shutil.disk_usage(self.folder).free
        if free < self.bytes:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(
                f"{self.folder}: the embeddings need {self.bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                "free some space, or leave --esp_medsam.cached false"
            )
        _reserve(self.folder / "values.f16", self.bytes)
        _reserve(self.folder / "checks.u32", 4 * len(self.rows))
        (self.folder / "layout.json").write_text(self._layout(), encoding="utf-8")  # last: now it is whole


def _check(value: NDArray[np.float16]) -> int:
    return zlib.crc32(np.ascontiguousarray(value).data) or 1


def _reserve(path: Path, size: int) -> None:
    """A file of zeros that has its space: a memory map of a file with holes would crash on a full disk."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - start)))
