"""Decoding happens once: images and masks at the training size, uint8, memory-mapped from disk.

A cache is a folder named by a hash of its inputs; it is built under a temporary name and renamed when whole, so a
half-built one is never seen. Each row carries a CRC; a cache whose sizes or sampled rows do not fit is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ..formats import (
    DICOM_SUFFIXES,
    dicom_files,
    read_image,
    read_mask,
    resize_image,
    resize_labels,
    series_window,
    split_address,
)
from ..types import UserError
from .labels import LabelMapping
from .rows import Row, by_file
from .volumes import read_neighbours, with_neighbours

A_DAY = 86400  # seconds
VERSION = 3  # of the layout and of everything that decides a pixel
ROWS_VERIFIED = 1000  # rows whose CRC is checked when a cache is opened


@dataclass(frozen=True)
class Cache:
    """N rows at one size: `images` (N, H, W, 3) and `masks` (N, H, W), zero where a row has no mask."""

    images: NDArray[np.uint8] | Stacked
    masks: NDArray[np.uint8] | Stacked
    data_hash: str  # of the files' contents, the same on every machine


class Stacked:
    """Arrays of equally shaped rows as one, read by row numbers; nothing is copied before."""

    def __init__(self, parts: Sequence[NDArray[np.uint8] | Stacked]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape: tuple[int, ...] = (int(self.starts[-1]), *parts[0].shape[1:])

    def __getitem__(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The rows of these numbers, in their order."""
        rows = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        which = np.searchsorted(self.starts, numbers, "right") - 1
        for part in np.unique(which):
            rows[which == part] = self.parts[part][numbers[which == part] - self.starts[part]]
        return rows


def join_caches(caches: Sequence[Cache]) -> Cache:
    """The caches of several data sets as one, one after the other; a single one stays as it is."""
    if len(caches) == 1:
        return caches[0]
    digest = hashlib.blake2b("".join(cache.data_hash for cache in caches).encode(), digest_size=16)
    images, masks = Stacked([cache.images for cache in caches]), Stacked([cache.masks for cache in caches])
    return Cache(images, masks, digest.hexdigest())


class _Plan(NamedTuple):
    """What decides every pixel of a cache."""

    rows: Sequence[Row]
    mapping: LabelMapping | None
    size: tuple[int, int]
    fit: str
    neighbours: int


def open_cache(
    rows: Sequence[Row],
    mapping: LabelMapping | None,
    *,
    size: tuple[int, int],
    fit: str,
    folder: Path,
    neighbours: int = 0,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Open the cache of these rows in `folder`, building it when it is missing or damaged.

    Masks hidden by a label budget are stored too, so that every budget and seed shares one cache.

    Args:
        rows: What to decode, in this order.
        mapping: Mask values to class indices; None where no row has a mask.
        size: (H, W) of the result.
        fit: "squash" or "pad".
        folder: Where caches live.
        neighbours: 1: the channels are the slices below, at and above a row in its volume.
        threads: Decoding threads.
        on_progress: Called with (done, total).

    Raises:
        UserError: A file cannot be read, or the disk is full.
        OSError: A file is not there.
    """
    plan = _Plan(rows, mapping, size, fit, neighbours)
    target = folder / _key(plan)
    cache = _read(target, len(rows), size)
    if cache is None:
        _build(target, plan, threads, on_progress)
        cache = _read(target, len(rows), size)
    if cache is None:
        raise UserError(
            f"{target}: the cache just written does not read back; check the disk or choose another --cache"
        )
    return cache


def truth(row: Row) -> Path | None:
    """The row's mask, also where the label budget hides it from training."""
    return row.mask or row.hidden


def read_labels(path: Path, mapping: LabelMapping, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A mask file as class indices; UserError when it does not fit its image's (H, W) or holds an unknown value."""
    raw = read_mask(path)
    if raw.shape != shape:
        given, needed = (f"{side[1]} x {side[0]}" for side in (raw.shape, shape))
        raise UserError(f"{path}: the mask has {given} pixels, its image {needed}; make them the same size")
    try:
        return mapping.apply(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _key(plan: _Plan) -> str:
    decided = [VERSION, plan.mapping and plan.mapping.to_json(), plan.size, plan.fit, plan.neighbours]
    digest = hashlib.blake2b(json.dumps(decided).encode(), digest_size=12)
    for row in plan.rows:
        for path in (row.image, truth(row)):
            stat = split_address(path)[0].stat() if path else None
            digest.update(repr((str(path), stat and _state(stat))).encode())
    # A DICOM slice may be shown by the window of all that lie beside it
    for folder in sorted({row.image.parent for row in plan.rows if row.image.suffix.lower() in DICOM_SUFFIXES}):
        for file in dicom_files(folder):
            digest.update(repr((str(file), _state(file.stat()))).encode())
    return digest.hexdigest()


def _state(stat: os.stat_result) -> tuple[int, int, int]:
    """What changes with a file's content: `cp -p` and `rsync -t` set the second, nothing sets the third."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read(target: Path, count: int, size: tuple[int, int]) -> Cache | None:
    """The cache, or None when it is missing, incomplete or damaged."""
    try:
        meta = json.loads((target / "meta.json").read_text(encoding="utf-8"))
        images = np.load(target / "images.npy", mmap_mode="r")
        masks = np.load(target / "masks.npy", mmap_mode="r")
        crc = np.load(target / "crc.npy")
        data_hash = str(meta["data_hash"])
    except Exception:  # whatever numpy and json find in a damaged file: it is made anew
        return None
    if any(part.dtype != np.uint8 or not part.flags.c_contiguous for part in (images, masks)):
        return None
    if images.shape != (count, *size, 3) or masks.shape != (count, *size) or crc.shape != (count,):
        return None
    sample = np.unique(np.linspace(0, count - 1, min(count, ROWS_VERIFIED)).astype(int))
    if any(_crc(images[i], masks[i]) != crc[i] for i in sample):
        return None
    return Cache(images, masks, data_hash)


def _crc(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> int:
    return zlib.crc32(mask.data, zlib.crc32(image.data))


def _build(target: Path, plan: _Plan, threads: int | None, on_progress: Callable[[int, int], None] | None) -> None:
    _remove_abandoned(target.parent)
    temporary = target.with_name(f"{target.name}.{uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        _require_space(temporary, len(plan.rows) * plan.size[0] * plan.size[1] * 4)
        _write(temporary, plan, threads, on_progress)
        _put(temporary, target, plan)
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot write the cache ({error}); free some space or choose another --cache"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """What builds that were killed left here: nobody has written to it for a day."""
    for left in folder.glob("*.tmp"):
        if re.fullmatch(r"[0-9a-f]{24}\.[0-9a-f]{32}\.tmp", left.name):
            with suppress(OSError):  # another process takes it away at the same time
                if time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > A_DAY:
                    shutil.rmtree(left)


def _put(temporary: Path, target: Path, plan: _Plan) -> None:
    """Under its name, unless another process was first: that one may be reading its own by now."""
    if _read(target, len(plan.rows), plan.size):
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        temporary.replace(target)
    except OSError:
        if not _read(target, len(plan.rows), plan.size):
            raise


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent}: the cache needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free some space, choose another --cache, or a smaller --size"
        )


def _write(folder: Path, plan: _Plan, threads: int | None, on_progress: Callable[[int, int], None] | None) -> None:
    rows, mapping, size, fit, neighbours = plan
    around = with_neighbours(rows) if neighbours else {}
    create = np.lib.format.open_memmap
    images = create(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(rows), *size, 3))
    masks = create(folder / "masks.npy", mode="w+", dtype=np.uint8, shape=(len(rows), *size))
    crc = np.zeros(len(rows), np.uint32)
    contents = [b""] * len(rows)

    def decode(number: int) -> bytes:
        row, content = rows[number], hashlib.blake2b(_content(rows[number].image), digest_size=16)
        if window := series_window(rows[number].image):  # not decided by the file alone
            content.update(f"{window[0]:.6g} {window[1]:.6g}".encode())
        image = read_neighbours(around[row.image]) if neighbours else read_image(row.image)
        images[number] = resize_image(image, size, fit)
        mask = truth(row)
        if mask and mapping:
            content.update(_content(mask))
            masks[number] = resize_labels(read_labels(mask, mapping, image.shape[:2]), size, fit)
        crc[number] = _crc(images[number], masks[number])
        return content.digest()

    order = by_file([row.image for row in rows])
    for done, content in enumerate(_in_order(decode, order, threads), 1):
        contents[order[done - 1]] = content
        if on_progress:
            on_progress(done, len(rows))
    digest = hashlib.blake2b(b"".join(contents), digest_size=16)
    images.flush()
    masks.flush()
    np.save(folder / "crc.npy", crc)
    meta = {"version": VERSION, "rows": len(rows), "size": size, "fit": fit, "data_hash": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _content(path: Path) -> bytes:
    """A hash of the file's content, and which slice of it."""
    file, slice = split_address(path)
    return _digest(file, _state(file.stat())) + repr(slice).encode()


@lru_cache(maxsize=64)  # the slices of a volume come one after the other
def _digest(file: Path, state: tuple[int, int, int]) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "blake2b").digest()


def _in_order(work: Callable[[int], bytes], numbers: Sequence[int], threads: int | None) -> Iterator[bytes]:
    """Results of work(number) in order, from threads (Pillow decodes without the GIL), a bounded number ahead."""
    ahead = 64
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        pending = [pool.submit(work, number) for number in numbers[:ahead]]
        try:
            for i in range(len(numbers)):
                yield pending[i % ahead].result()
                if i + ahead < len(numbers):
                    pending[i % ahead] = pool.submit(work, numbers[i + ahead])
        finally:
            for future in pending:
                future.cancel()
