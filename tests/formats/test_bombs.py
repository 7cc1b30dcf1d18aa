"""Small files that ask for much: refused before the memory is taken. Measured in a process of its own (Linux)."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit
from volumes import dataset

from segdistill.formats import layout, read_image
from segdistill.types import UserError

MEGABYTES = 300  # a first look at a file of each kind takes less, libraries included
GREY = np.zeros((24, 30), np.uint8)
SIDE = 15_000  # of a picture that is 225 MB once it is decoded


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(kind: bytes, data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    whole = buffer.getvalue()
    return whole[:33] + chunk(kind, data) + whole[33:]


def jpeg(side: int, format_: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, format_, **options)
    return buffer.getvalue()


def wide_jpeg2000() -> bytes:
    """A small stream whose header says 60,000 x 60,000, in one tile."""
    content = bytearray(jpeg(24, "JPEG2000", no_jp2=True, num_resolutions=1))
    struct.pack_into(">2I", content, 8, 60_000, 60_000)
    struct.pack_into(">2I", content, 24, 60_000, 60_000)
    return bytes(content)


def sized(format_: str) -> bytes:
    """A small picture whose header says 60,000 x 60,000."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, format_)
    content = bytearray(buffer.getvalue())
    if format_ == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    elif format_ == "BMP":
        content[18:26] = struct.pack("<II", 60_000, 60_000)
    else:
        at = struct.unpack_from("<I", content, 4)[0]
        for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], 12):
            if struct.unpack_from("<H", content, entry)[0] in (256, 257):
                struct.pack_into("<HII", content, entry + 2, 4, 1, 60_000)
    return bytes(content)


def dicom(frame: bytes, syntax: str, stated: np.ndarray = GREY) -> bytes:
    """A file that says 24 x 30, or another size, around any frame."""
    data = dataset(stated, WindowCenter=128, WindowWidth=256)
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def nifti(inside: int) -> bytes:
    """A header of 2,000 x 2,000 x 2,000 voxels and `inside` zeros, 1,000 times smaller on disk."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 2000, 2000, 2000, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + bytes(inside), 9)


@cache
def zeros() -> bytes:
    """400 MB of them."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(400)) + packer.flush()


BOMBS = {
    "text.png": lambda: png_with(b"zTXt", b"a\0\0" + zeros()),
    "international.png": lambda: png_with(b"iTXt", b"a\0\1\0\0\0" + zeros()),
    "profile.png": lambda: png_with(b"iCCP", b"a\0\0" + zeros()),
    "header.jpg": lambda: sized("JPEG"),
    "header.tif": lambda: sized("TIFF"),
    "header.bmp": lambda: sized("BMP"),
    "voxels.nii.gz": lambda: nifti(100_000_000),
    "jpeg.dcm": lambda: dicom(jpeg(SIDE), JPEGBaseline8Bit),
    "jpeg2000.dcm": lambda: dicom(wide_jpeg2000(), JPEG2000Lossless),
}
CODE = """
import resource, sys, warnings
from pathlib import Path
from segdistill.formats import layout, read_image
from segdistill.types import UserError
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(Path(sys.argv[1]))
    print("read")
except UserError as error:
    print("refused", error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BOMBS[name]())
    assert path.stat().st_size < 20e6
    if sys.platform != "linux":  # elsewhere the unit and the baseline are others
        with pytest.raises(UserError, match="cannot be read"):
            read_image(path)
        return
    done = subprocess.run([sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, timeout=60)
    assert not done.stderr
    said, megabytes = done.stdout.splitlines()
    assert said.startswith("refused"), said
    assert str(path) in said
    assert float(megabytes) < MEGABYTES


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    for name in ("a.png", "a.nii", "a.h5", "a.dcm", "a") if hasattr(os, "mkfifo") else ():
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="is not a file"):
            read_image(tmp_path / name)


def scans(count: int) -> bytes:
    """A progressive JPEG with `count` empty scans more than it needs, ten bytes each."""
    return jpeg(64, progressive=True)[:-2] + bytes.fromhex("ffda0008010100013f00") * count + b"\xff\xd9"


@pytest.mark.parametrize("name", ["a.jpg", "a.dcm"])
def test_a_jpeg_of_many_scans_is_not_decoded(tmp_path: Path, name: str) -> None:
    for count in (30, 200):
        content = scans(count)
        (tmp_path / f"{count}{name}").write_bytes(
            content if name == "a.jpg" else dicom(content, JPEGBaseline8Bit, np.zeros((64, 64), np.uint8))
        )
    assert read_image(tmp_path / f"30{name}").shape == (64, 64, 3)
    with pytest.raises(UserError, match="over 100 scans") as caught:
        read_image(tmp_path / f"200{name}")
    assert "\n" not in str(caught.value)


def test_what_only_looks_like_scans_is_no_scan(tmp_path: Path) -> None:
    marks = b"\xff\xda" * 5000
    content = jpeg(64, progressive=True)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(marks)) + marks
    for number, one in enumerate((content + marks, content[:2] + comment + content[2:])):  # a video behind, a preview
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(one)
        assert read_image(path).shape == (64, 64, 3)


def tiles(count: int, signature: bytes) -> bytes:
    """A TIFF of `count` tiles in one row."""
    order, big = "<" if signature[:1] == b"I" else ">", b"+" in signature
    offsets = np.full(count, 16, f"{order}u4").tobytes()
    tags = [(256, count * 16), (257, 16), (258, 8), (259, 1), (262, 1), (277, 1), (322, 16), (323, 16)]
    number = "Q" if big else "I"
    page = struct.pack(f"{order}{'Q' if big else 'H'}", len(tags) + 1)
    page += b"".join(struct.pack(f"{order}HH{number}{number}", tag, 16 if big else 4, 1, value) for tag, value in tags)
    page += struct.pack(f"{order}HH{number}{number}", 324, 4, count, 16 + 256) + bytes(8)
    at = 16 + 256 + len(offsets)
    head = struct.pack(f"{order}HHQ", 8, 0, at) if big else struct.pack(f"{order}I8x", at)
    return signature + head + bytes(256) + offsets + page


@pytest.mark.parametrize("signature", [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"])
def test_a_tiff_of_many_tiles_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signature: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiles(5, signature))
    if signature != b"MM\0+":  # which Pillow does not read
        assert read_image(path).shape == (16, 80, 3)
    path.write_bytes(tiles(100_001, signature))
    monkeypatch.setattr(TiffImageFile, "_open", lambda self: pytest.fail("begun"))
    for look in (read_image, layout):
        with pytest.raises(UserError, match="more than 100,000 strips or tiles") as caught:
            look(path)
        assert "\n" not in str(caught.value)
