"""Whatever the bytes, a reader gives an array or one line that names the file, and never says who the patient is."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEGLSLossless, RLELossless
from volumes import SECRET, dataset

from segdistill.formats import (
    Series,
    find_series,
    layout,
    read_mask_volume,
    read_raster_bytes,
    read_seg,
    read_volume,
    series_of,
)
from segdistill.formats.dicom import burned_in
from segdistill.types import UserError

GREY = np.random.default_rng(0).integers(0, 256, (2, 9, 12), dtype=np.uint8)
BEGINNINGS = {
    "a.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "a.tif": b"II*\0\x08\0\0\0",
    "big.tif": b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
    "a.bmp": b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    "a.nii": b"\x5c\x01\0\0" + bytes(36),
    "a.nii.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
    "a.h5": b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0",
    "a.dcm": bytes(128) + b"DICM\x02\0\x00\0UL\x04\0",
}


def _raster(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([GREY[0]] * 3)).save(buffer, format_)
    return buffer.getvalue()


def _hdf5() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("image", data=GREY, compression="gzip")
        file.create_dataset("label", data=GREY % 3)
    return buffer.getvalue()


def _dicom(syntax: str | None = None) -> bytes:
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    noise = syntax == JPEGLSLossless  # its encoder has no room for more bytes than pixels
    data = dataset(GREY // 9 if noise else GREY, PatientComments=SECRET, **place)
    if syntax:
        data.compress(syntax)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@cache
def whole(name: str) -> bytes:
    nifti = nibabel.Nifti1Image(GREY.astype(np.int16), np.diag([1, 2, 3, 1])).to_bytes()
    made: dict[str, Callable[[], bytes]] = {
        "a.png": lambda: _raster("PNG"),
        "a.jpg": lambda: _raster("JPEG"),
        "a.tif": lambda: _raster("TIFF"),
        "big.tif": lambda: _raster("TIFF"),
        "a.bmp": lambda: _raster("BMP"),
        "a.nii": lambda: nifti,
        "a.nii.gz": lambda: gzip.compress(nifti),
        "a.h5": _hdf5,
        "a.dcm": _dicom,
        "rle.dcm": lambda: _dicom(RLELossless),
        "ls.dcm": lambda: _dicom(JPEGLSLossless),
    }
    return made[name]()


def changed(name: str, data: st.DataObject) -> bytes:
    """A whole file with a few numbers written over, cut off, or with a piece too many."""
    content = bytearray(whole(name))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.integers(0, 3)):
            piece = data.draw(st.binary(min_size=1, max_size=8))
            content[at : at + len(piece)] = piece
        else:
            content[at : at + data.draw(st.integers(0, 400))] = data.draw(st.binary(max_size=20))
        if not content:
            break
    return bytes(content)


def look(path: Path) -> None:
    """Every reader has it; each gives something or one line that names the file."""
    readers = [layout, read_volume, read_mask_volume]
    if path.suffix == ".dcm":
        readers += [burned_in, series_of, lambda one: find_series([one])]
        readers.append(lambda one: read_seg(one, Series((one,), (1, 1, 1), "")))
    if path.suffix in (".png", ".jpg", ".tif", ".bmp"):
        readers.append(lambda one: read_raster_bytes(one.read_bytes(), str(one)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for read in readers:
            try:
                message, found = "", read(path)
            except UserError as error:
                message, found = str(error), None
            assert "\n" not in message
            assert str(path) in message or (not message and found is not None)
            assert SECRET not in message
    assert not any(SECRET in str(one.message) for one in caught)


@pytest.mark.parametrize("name", BEGINNINGS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.booleans(), st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, name: str, begun: bool, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"any ü {name}"
    path.write_bytes(BEGINNINGS[name] * begun + content)
    look(path)


@pytest.mark.parametrize("name", [*BEGINNINGS, "rle.dcm", "ls.dcm"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_changed_file(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / f"changed ü {name}"
    path.write_bytes(changed(name, data))
    look(path)


def test_the_whole_files_are_read(tmp_path: Path) -> None:
    """So that the tests above begin with what is sound."""
    for name in [*BEGINNINGS, "rle.dcm", "ls.dcm"]:
        (tmp_path / name).write_bytes(whole(name))
        assert read_volume(tmp_path / name).size


@pytest.mark.parametrize("syntax", [b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.4", b"1.2\\1.2.840.10008.1"])
def test_a_transfer_syntax_of_another_type(tmp_path: Path, syntax: bytes) -> None:
    content = whole("a.dcm")
    start = content.index(b"\x02\x00\x10\x00UI") + 4
    length = int.from_bytes(content[start + 2 : start + 4], "little")
    value = b"LO" + length.to_bytes(2, "little") + syntax.ljust(length, b" ")
    (tmp_path / "a.dcm").write_bytes(content[:start] + value + content[start + 4 + length :])
    look(tmp_path / "a.dcm")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii", ".nii.gz", ".h5", ".dcm", ".xyz", ""])
@pytest.mark.parametrize("name", ["a.png", "a.nii", "a.h5", "a.dcm"])
def test_a_file_under_another_kinds_name(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(whole(name))
    look(path)
