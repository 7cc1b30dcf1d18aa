"""Sizes that compressed frames state. Oracle: the pictures that were encoded by Pillow and pyjpegls."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGLSLossless
from volumes import dataset

from segdistill.formats.dicom_frames import stated_size

SIDES = st.integers(16, 300)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0" * 9}, {"dpi": (96, 96)}])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(SIDES, SIDES, st.sampled_from(["L", "RGB", "CMYK"]))
def test_jpeg(options: dict, rows: int, columns: int, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (columns, rows)).save(buffer, "JPEG", **options)
    assert stated_size(buffer.getvalue()) == (rows, columns)


@pytest.mark.parametrize("no_jp2", [False, True])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(SIDES, SIDES)
def test_jpeg_2000(no_jp2: bool, rows: int, columns: int) -> None:
    buffer = io.BytesIO()
    Image.new("L", (columns, rows)).save(buffer, "JPEG2000", no_jp2=no_jp2, num_resolutions=1)
    assert stated_size(buffer.getvalue()) == (rows, columns)


@pytest.mark.parametrize("shape", [(20, 33), (64, 17)])
def test_jpeg_ls(shape: tuple[int, int]) -> None:
    data = dataset(np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8))
    data.compress(JPEGLSLossless)
    (frame,) = generate_frames(data.PixelData, number_of_frames=1)
    assert stated_size(frame) == shape


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\x4f\xff\x51"]), st.binary(max_size=60))
def test_anything_else_has_a_size_or_none(start: bytes, content: bytes) -> None:
    assert min(stated_size(start + content)) >= 0
