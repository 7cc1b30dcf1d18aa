"""One look at every file of a data set: each is decoded once, faults are noted, and only little is kept of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats import decode_image, decode_mask, is_volume, split_address
from ..formats.dicom import burned_in, is_dicom
from ..formats.images import is_packed
from ..types import UserError
from .ambiguity import most_values, threshold_for
from .cache import truth
from .hashing import thumbnail
from .palettes import colours_of
from .rows import Row, by_file

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Seen:
    """What a row's files hold. An unreadable file leaves its fields empty and a line in `problems`."""

    size: Size | None = None
    digest: bytes = b""  # of the decoded pixels, the same as PNG and as TIFF; none where all are equal, as in air
    burned_in: bool = False  # DICOM whose pixels may hold the patient's name
    picture: NDArray[np.uint8] | None = None  # the thumbnail, (64, 64)
    orientation: int = 1  # EXIF's, by which the image was turned upright
    mask_orientation: int = 1
    mask_size: Size | None = None
    values: Mapping[int, int] = field(default_factory=dict)  # raw mask value -> pixels, of too many the commonest
    crowded: str = ""  # more values than can be classes: the threshold that makes some
    colour: bool = False  # the mask is in colour: without a threshold its values are packed
    palette: Mapping[int, int] = field(default_factory=dict)  # of a palette mask: index that occurs -> its colour
    problems: tuple[str, ...] = ()


def inspect(
    rows: Sequence[Row],
    *,
    threshold: int | None = None,
    named: int = 0,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Seen]:
    """Decode each image and mask once, by threads; in the order of the rows.

    Args:
        rows: What to look at; masks that a label budget hides too.
        threshold: Mask values become 0 (at most this) and 1 (above).
        named: Number of classes that have names: so many values, or 32, may be classes.
        threads: Decoding threads. None: one per core.
        on_progress: Called with (done, total).
    """
    order = by_file([row.image for row in rows])
    seen = {}
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        ordered = [rows[i] for i in order]
        for done, one in enumerate(pool.map(partial(_inspect, threshold=threshold, named=named), ordered), 1):
            seen[order[done - 1]] = one
            if on_progress:
                on_progress(done, len(rows))
    return [seen[i] for i in range(len(rows))]


def _inspect(row: Row, *, threshold: int | None, named: int) -> Seen:
    problems: list[str] = []
    known: dict[str, Any] = {}
    mask = truth(row)
    for look in (partial(_image, row.image), partial(_mask, mask, threshold, named) if mask else dict):
        try:
            known |= look()
        except UserError as error:
            problems.append(str(error))
    return Seen(**known, problems=tuple(problems))


def _image(path: Path) -> dict[str, Any]:
    image, orientation, _ = decode_image(path)
    size = (image.shape[0], image.shape[1])
    known = {"size": size, "orientation": orientation, "burned_in": _may_name_patient(path)}
    if image.min() == image.max():
        return known
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return {**known, "digest": digest.digest(), "picture": thumbnail(image)}


def _may_name_patient(path: Path) -> bool:
    file = split_address(path)[0]
    return is_volume(path) and is_dicom(file) and burned_in(file)


def _mask(path: Path, threshold: int | None, named: int) -> dict[str, Any]:
    raw, orientation, palette = decode_mask(path)
    size, colour = (raw.shape[0], raw.shape[1]), is_packed(raw)
    if raw.dtype == np.uint8:
        counts = np.bincount(raw.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(raw, return_counts=True)
    known: dict[str, Any] = {"mask_size": size, "mask_orientation": orientation, "colour": colour}
    if palette:
        known["palette"] = colours_of(values.tolist(), palette)
    if threshold is not None:
        if colour:
            values = np.maximum(np.maximum(values >> 16, (values >> 8) & 255), values & 255)
        above = int(counts[values > threshold].sum())
        sides = {0: int(counts.sum()) - above, 1: above}
        return {**known, "values": {side: pixels for side, pixels in sides.items() if pixels}}
    most = most_values(named)
    if len(values) > most:
        known["crowded"] = threshold_for(values.tolist(), colour)
    common = np.sort(np.argsort(-counts, kind="stable")[: most + 1])
    held = {int(values[i]): int(counts[i]) for i in common}
    return {**known, "values": held}
