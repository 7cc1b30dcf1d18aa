"""Addresses, dispatch and the few decoded volumes that are kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from volumes import save_dicom, save_nifti

from segdistill.formats import (
    check_pair,
    files,
    is_volume,
    layout,
    nifti,
    read_image,
    read_mask,
    read_mask_volume,
    read_volume,
    split_address,
    stem_of,
)

RNG = np.random.default_rng(0)
NAMES = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(NAMES, st.sampled_from(sorted(files.VOLUME_SUFFIXES)), st.booleans(), st.integers(0, 99_999))
def test_an_address_is_taken_apart_as_it_was_made(name: str, suffix: str, upper: bool, number: int) -> None:
    name = name + (suffix.upper() if upper else suffix)
    path = Path("some folder#1.nii") / name
    assert split_address(path.with_name(f"{name}#{number}")) == (path, number)
    assert split_address(path) == (path, None)
    assert is_volume(path.with_name(f"{name}#{number}"))
    assert is_volume(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(NAMES)
def test_any_name_is_either_its_own_file_or_an_address(name: str) -> None:
    path = Path("folder") / name
    file, number = split_address(path)
    assert (file == path) if number is None else is_volume(file)


@pytest.mark.parametrize(
    "name", ["a#1.png", "a.png#1", "a.nii.gz#", "a.nii.gz#x", "a.nii#-1", "a.nii#1.0", ".nii#3", "#1"]
)
def test_what_is_no_address(name: str) -> None:
    assert split_address(Path(name)) == (Path(name), None)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *(("a.nii.gz", "a"), ("a.b.NII.GZ#3", "a.b"), ("a.nii", "a"), ("a.h5#0", "a"), ("a.dcm", "a"), ("a.png", "a")),
        *(("IM0001", "IM0001"), ("1.2.840.5", "1.2.840.5"), ("a#1.png", "a#1"), ("a.gz", "a.gz")),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert stem_of(Path("f.nii") / name) == stem


def test_plain_images_are_volumes_of_one(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path, shape in (
        (tmp_path / "a#1.png", (5, 7)),
        (tmp_path / "turned.jpg", (7, 5)),
        (tmp_path / "t.png", (7, 5)),
    ):
        Image.fromarray(rgb).save(path, **({} if "#" in path.name else {"exif": exif}))
        assert layout(path) == (1, shape, None)
        assert read_image(path).shape == (*shape, 3)
        assert read_volume(path).shape == (1, *shape, 3)
        assert read_mask_volume(path).shape == (1, *shape)
    check_pair(tmp_path / "turned.jpg", tmp_path / "t.png")
    fails(lambda: check_pair(tmp_path / "a#1.png", tmp_path / "t.png"), "1x7x5", "1x5x7")


def test_slices_by_address_only(tmp_path: Path) -> None:
    voxels = RNG.integers(0, 200, (4, 5, 3)).astype(np.uint8)
    path = save_nifti(tmp_path / "ä b.nii.gz", voxels, np.diag([-1, -1, 4, 1]))
    for k in range(3):
        np.testing.assert_array_equal(read_mask(Path(f"{path}#{k}")), voxels[:, :, k].T)
    fails(lambda: read_image(path), "holds 3 slices", "ä b.nii.gz#0")
    fails(lambda: read_mask(Path(f"{path}#3")), "no such slice", "#2")
    read_image(Path(f"{path}#1"))[:] = 0  # what is handed out is the caller's
    read_volume(path)[:] = 0
    assert read_volume(path).any()
    np.testing.assert_array_equal(read_image(Path(f"{path}#1"))[..., 0], read_volume(path)[1])
    Image.fromarray(voxels[:, :, 0].T).save(tmp_path / "m.png")
    check_pair(Path(f"{path}#2"), tmp_path / "m.png")
    fails(lambda: check_pair(path, tmp_path / "m.png"), "1x5x4", "3x5x4")


def test_dicom_without_a_suffix_is_known_by_its_content(tmp_path: Path) -> None:
    grey = RNG.integers(0, 255, (4, 6)).astype(np.uint8)
    save_dicom(tmp_path / "IM0001", grey, WindowCenter=128, WindowWidth=256)
    assert read_image(tmp_path / "IM0001").shape == (4, 6, 3)
    assert not is_volume(tmp_path / "IM0001")
    (tmp_path / "other").write_bytes(bytes(500))
    fails(lambda: read_image(tmp_path / "other"), "other", "PNG")
    fails(lambda: read_image(tmp_path), "is a folder")


def test_a_volume_is_decoded_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_nifti(tmp_path / "a.nii", np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    calls, barrier, decode = [], threading.Barrier(4), nifti.read_volume

    def counted(file: Path) -> np.ndarray:
        calls.append(file)
        return decode(file)

    def ask(k: int) -> np.ndarray:
        barrier.wait()
        return read_image(Path(f"{path}#{k}"))

    monkeypatch.setattr(nifti, "read_volume", counted)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(ask, range(4)))) == 4
    assert len(calls) == 1
    save_nifti(path, np.zeros((3, 4, 6), np.uint8))
    assert layout(path).slices == 6
    assert read_image(Path(f"{path}#5")).max() == 0
    assert len(calls) == 2


def test_few_volumes_are_kept_and_failures_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_decoded", files._Decoded())
    held = files._decoded._volumes
    paths = [save_nifti(tmp_path / f"{k}.nii", np.zeros((4, 4, 4), np.uint8)) for k in range(files.KEPT + 3)]
    for path in paths:
        read_volume(path)
    assert len(held) == files.KEPT
    monkeypatch.setattr(files, "KEPT_BYTES", 200)
    read_volume(paths[0])
    assert len(held) == 3  # 64 bytes each
    monkeypatch.setattr(files, "KEPT_BYTES", 1)
    read_volume(paths[1])
    assert len(held) == 2  # an image and its mask
    (tmp_path / "late.nii").write_bytes(b"not yet")
    fails(lambda: read_volume(tmp_path / "late.nii"), "late.nii")
    shutil.copy(paths[0], tmp_path / "late.nii")
    assert read_volume(tmp_path / "late.nii").shape == (4, 4, 4)


def test_a_missing_library_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library, name in (("nibabel", "a.nii"), ("h5py", "a.h5"), ("pydicom", "a.dcm")):
        (tmp_path / name).write_bytes(b"x")
        monkeypatch.setitem(sys.modules, library, None)
        fails(lambda name=name: read_image(tmp_path / name), library, "pip install segdistill[medical]")


def test_importing_formats_is_light() -> None:
    heavy = "{'torch', 'nibabel', 'pydicom', 'h5py', 'highdicom', 'scipy'}"
    code = f"import segdistill.formats, sys; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
