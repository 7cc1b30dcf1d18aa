"""Small image files that would cost hours or gigabytes: what they ask for is counted before it is done.

A progressive JPEG goes over the whole image once a scan, and a scan may be ten bytes. Each strip or tile of a TIFF is
an object before the first is read, and a tile may be one pixel.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import IO

from ..types import UserError

MAX_SCANS = 100  # libjpeg writes 10; libtiff refuses more than this, too
MAX_PARTS = 100_000  # strips or tiles
_START, _SCAN = b"\xff\xd8", b"\xff\xda"
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")  # with a length; 0xFF 0x00 is a byte of the picture
_END = 0xD9
_OFFSETS = {273, 324}  # TIFF's tags of strips, of tiles
_SIZES = {b"II+\0": (True,), b"MM\0+": (True, False)}  # whether it is BigTIFF; Pillow takes the second for classic
_MAX_TAGS = 65_535  # BigTIFF may count more


def check_scans(content: bytes, path: Path) -> None:
    """Raise `UserError` where a JPEG has more than MAX_SCANS scans; other kinds pass."""
    if content.startswith(_START) and content.count(_SCAN) > MAX_SCANS and _scans(content) > MAX_SCANS:
        raise UserError(
            f"{path}: a JPEG of over {MAX_SCANS} scans takes hours to decode; save it again, not progressive"
        )


def _scans(content: bytes) -> int:
    """Of the image itself: not of a thumbnail inside a segment, nor of what lies behind the end."""
    count, at = 0, 2
    while count <= MAX_SCANS and (found := _MARKER.search(content, at)) and (marker := found[1][0]) != _END:
        count += marker == _SCAN[1]
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    return count


def check_parts(file: IO[bytes], path: Path) -> None:
    """Count the strips or tiles of the first page of a TIFF or BigTIFF.

    Raises:
        UserError: more than MAX_PARTS.
        struct.error: the file ends before the page's list of tags.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:1] == b"I" else ">"
    for big in _SIZES.get(head[:4], (False,)):
        file.seek(*struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, 8 if big else 4))
        tags, entry = (f"{order}Q", f"{order}HHQ8x") if big else (f"{order}H", f"{order}HHI4x")
        (count,) = struct.unpack(tags, file.read(struct.calcsize(tags)))
        size = struct.calcsize(entry)
        listed = file.read(size * min(count, _MAX_TAGS))
        entries = struct.iter_unpack(entry, listed[: len(listed) // size * size])
        parts = max((parts for tag, _, parts in entries if tag in _OFFSETS), default=0)
        if count > _MAX_TAGS or parts > MAX_PARTS:
            raise UserError(f"{path}: a TIFF of more than {MAX_PARTS:,} strips or tiles; save it again as PNG")
