"""What a compressed frame in a DICOM file says of its own size, before a decoder takes memory for it.

The header counts rows and columns; JPEG, JPEG-LS and JPEG 2000 streams count theirs again, and decoders believe these.
RLE has no size of its own and grows by no more than 64 times.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from ..types import UserError
from .costly import check_scans

_STARTS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG frame's header; 0xF7: JPEG-LS
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_JPEG_2000 = b"\xff\x4f\xff\x51"


def check_frames(data: Any, frames: int, path: Path) -> None:
    """Raise `UserError` where a compressed frame of a pydicom Dataset costs more than it should.

    It holds more pixels than Rows x Columns, or it is a JPEG of more scans than anyone writes.
    """
    from pydicom.encaps import generate_frames

    if not data.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    table = data.get("ExtendedOffsetTable"), data.get("ExtendedOffsetTableLengths")
    offsets = table if all(table) else None
    for frame in generate_frames(data.PixelData, number_of_frames=frames, extended_offsets=offsets):
        check_scans(frame, path)
        rows, columns = stated_size(frame)
        if rows * columns > data.Rows * data.Columns:
            raise UserError(
                f"{path}: a compressed frame of {rows}x{columns} in an image of {data.Rows}x{data.Columns}; "
                "copy it again"
            )


def stated_size(frame: bytes) -> tuple[int, int]:
    """Rows and columns in the header of a JPEG, JPEG-LS or JPEG 2000 stream; (0, 0) where there is none."""
    start = frame.find(_JPEG_2000)
    if start >= 0 and len(frame) >= start + 24:
        width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
        return max(0, height - top), max(0, width - left)
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _STARTS:
            rows, columns = struct.unpack_from(">HH", frame, at + 5)
            return rows, columns
        at += 1 if marker == 0xFF else 2 if marker in _ALONE else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0, 0
