"""NIfTI to slices and back. Oracle: nibabel's as_closest_canonical and its affines."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes import save_nifti

from segdistill.formats import check_pair, layout, nifti, read_image, read_mask_volume, read_volume
from segdistill.formats.nifti import write_labels_like

RNG = np.random.default_rng(0)
# How a canonical (R, A, S) array becomes slices, rows, columns on a DICOM viewer, by the axis that slices lie across.
VIEWS = {
    0: lambda ras: ras[::-1, ::-1, ::-1].transpose(0, 2, 1),  # to left; rows to inferior, columns to posterior
    1: lambda ras: ras[::-1, ::-1, ::-1].transpose(1, 2, 0),  # to posterior; rows to inferior, columns to left
    2: lambda ras: ras[::-1, ::-1, :].transpose(2, 1, 0),  # to superior; rows to posterior, columns to left
}


@st.composite
def geometries(draw):
    """Any permutation and flips, a slight rotation, spacing and origin."""
    order = draw(st.permutations(range(3)))
    flips = [draw(st.sampled_from((-1.0, 1.0))) for _ in range(3)]
    spacing = [draw(st.floats(0.3, 6)) for _ in range(3)]
    angle = draw(st.floats(-0.3, 0.3))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, order] * flips * spacing)
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometries(), st.tuples(*[st.integers(2, 6)] * 3), st.sampled_from((".nii", ".nii.gz")))
def test_slices_are_views_of_the_canonical_array_and_labels_go_back_exactly(tmp_path_factory, affine, shape, suffix):
    folder = tmp_path_factory.mktemp("n")
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
    path = save_nifti(folder / f"in{suffix}", voxels, affine)
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    zooms = np.array(canonical.header.get_zooms(), float)
    axis = max(i for i in range(3) if zooms[i] >= zooms.max() * (1 - 1e-3))
    labels = read_mask_volume(path)
    np.testing.assert_array_equal(labels, VIEWS[axis](np.asarray(canonical.dataobj)))
    seen = layout(path)
    assert (seen.slices, *seen.shape) == labels.shape
    order = {0: [0, 2, 1], 1: [1, 2, 0], 2: [2, 1, 0]}[axis]
    np.testing.assert_allclose(seen.spacing, zooms[order], rtol=1e-5)

    write_labels_like(folder / f"out{suffix}", labels.astype(np.uint8), path)
    back, given_ = nibabel.load(folder / f"out{suffix}"), nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(back.dataobj), voxels)
    np.testing.assert_array_equal(back.affine, given_.affine)
    check_pair(path, folder / f"out{suffix}")


def test_geometry_fields_units_and_codes_are_copied_and_text_is_not(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6, 1), np.int16), np.diag([2, 2, 3, 1]))
    image.set_qform(np.array([[0, -2, 0, 1], [2, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1.0]]), 1)
    image.set_sform(np.array([[0, -2, 0, 1], [2, 0, 0.1, 2], [0, 0, 3, 3], [0, 0, 0, 1.0]]), 4)
    image.header.set_xyzt_units("micron", "sec")
    image.header["descrip"] = b"Secret Patient"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Secret Patient"))
    nibabel.save(image, tmp_path / "in.nii.gz")
    labels = RNG.integers(0, 3, nifti.read_header(tmp_path / "in.nii.gz").sides).astype(np.uint8)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels_like(tmp_path / name, labels, tmp_path / "in.nii.gz")
    back = nibabel.load(tmp_path / "a.nii.gz")
    assert back.shape == image.shape
    assert back.get_data_dtype() == np.uint8
    assert np.isnan(back.header["scl_slope"]) or back.header["scl_slope"] in (0, 1)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_y", "quatern_d", "qoffset_x"):
        np.testing.assert_array_equal(back.header[field], nibabel.load(tmp_path / "in.nii.gz").header[field])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert b"Secret" not in gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert layout(tmp_path / "in.nii.gz").spacing == pytest.approx((0.003, 0.002, 0.002), rel=2e-3)  # micron
    with pytest.raises(ValueError, match="slices"):
        write_labels_like(tmp_path / "c.nii", labels[1:], tmp_path / "in.nii.gz")
    fails(lambda: write_labels_like(tmp_path / "c.png", labels, tmp_path / "in.nii.gz"), "c.png", ".nii.gz")


def test_big_endian_nifti2_and_two_dimensions(tmp_path: Path) -> None:
    voxels = RNG.integers(0, 9, (4, 5, 3)).astype(">i2")
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 5, 1]), header), tmp_path / "big.NII")
    np.testing.assert_array_equal(read_mask_volume(tmp_path / "big.NII"), voxels.transpose(2, 1, 0))
    nibabel.save(nibabel.Nifti2Image(voxels.astype(np.int16), np.diag([-1, -1, 5, 1])), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_mask_volume(tmp_path / "two.nii.gz"), voxels.transpose(2, 1, 0))
    write_labels_like(tmp_path / "o.nii", read_mask_volume(tmp_path / "two.nii.gz"), tmp_path / "two.nii.gz")
    assert isinstance(nibabel.load(tmp_path / "o.nii"), nibabel.Nifti2Image)
    flat = save_nifti(tmp_path / "flat.nii", voxels[:, :, 0].astype(np.uint8), np.diag([-9, -9, 1, 1]))
    assert layout(flat)[:2] == (1, (5, 4))  # one slice, though its third axis is the finest
    assert read_image(flat).shape == (5, 4, 3)
    one = save_nifti(tmp_path / "coronal.nii", voxels[:, :1].astype(np.uint8))
    assert layout(one)[:2] == (1, (3, 4))  # a single coronal slice is not cut into lines


def test_one_window_for_all_slices_after_scaling(tmp_path: Path) -> None:
    voxels = np.sort(RNG.normal(0, 500, 6 * 7 * 8)).reshape(6, 7, 8).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, np.diag([-1, -1, 3, 1]))
    image.header.set_slope_inter(2, -100)
    nibabel.save(image, tmp_path / "a.nii")
    scaled = nibabel.load(tmp_path / "a.nii").get_fdata()
    low, high = np.percentile(scaled, (0.5, 99.5))
    expected = np.rint(np.clip((scaled - low) / (high - low) * 255, 0, 255)).transpose(2, 1, 0)
    assert np.abs(read_volume(tmp_path / "a.nii") - expected).max() <= 1
    assert (read_volume(tmp_path / "a.nii") == expected).mean() > 0.99
    np.testing.assert_array_equal(
        read_image(Path(f"{tmp_path / 'a.nii'}#2"))[..., 1], read_volume(tmp_path / "a.nii")[2]
    )
    wide = save_nifti(tmp_path / "wide.nii", np.array([-32768, 32767] * 4, np.int16).reshape(2, 2, 2))
    assert sorted(np.unique(read_volume(wide))) == [0, 255]  # the difference does not fit 16 bits
    spot = np.zeros((20, 20, 20), np.float32)
    spot[3, 4, 5] = 7
    assert read_volume(save_nifti(tmp_path / "spot.nii", spot)).max() == 255
    assert read_volume(save_nifti(tmp_path / "even.nii", spot * 0)).max() == 0


def test_masks_are_whole_numbers(tmp_path: Path) -> None:
    values = RNG.integers(0, 4, (3, 4, 5))
    float_mask = save_nifti(tmp_path / "a.nii", values.astype(np.float32))
    assert read_mask_volume(float_mask).dtype == np.uint8
    image = nibabel.Nifti1Image(values.astype(np.int16) * 255, np.eye(4))
    image.header.set_slope_inter(1 / 255, 0)  # not exactly a whole number any more
    nibabel.save(image, tmp_path / "b.nii")
    np.testing.assert_array_equal(read_mask_volume(tmp_path / "b.nii"), read_mask_volume(float_mask))
    assert read_mask_volume(save_nifti(tmp_path / "c.nii", values.astype(np.int32) * 70_000)).dtype == np.int64
    half = save_nifti(tmp_path / "d.nii", values.astype(np.float32) + 0.5)
    fails(lambda: read_mask_volume(half), "d.nii", "fractional")


def test_pairs_must_agree(tmp_path: Path) -> None:
    voxels = np.zeros((4, 5, 6), np.uint8)
    image = save_nifti(tmp_path / "a.nii", voxels)
    moved, near = np.eye(4), np.eye(4)
    moved[0, 3], near[0, 3] = 0.01, 0.0005
    check_pair(image, save_nifti(tmp_path / "near.nii", voxels, near))
    fails(lambda: check_pair(image, save_nifti(tmp_path / "b.nii", voxels, moved)), "b.nii", "0.01 mm")
    fails(lambda: check_pair(image, save_nifti(tmp_path / "c.nii", voxels[:, :, 1:])), "5x5x4", "6x5x4")
    fails(lambda: check_pair(image, save_nifti(tmp_path / "d.nii", voxels[1:])), "6x5x3")


def damaged(folder: Path) -> dict[str, bytes]:
    whole = save_nifti(folder / "whole.nii", RNG.integers(0, 99, (9, 9, 9)).astype(np.int16)).read_bytes()
    bomb = bytearray(whole)
    bomb[40:48] = struct.pack("<4h", 3, 10_000, 10_000, 10_000)
    negative = bytearray(whole)
    negative[40:48] = struct.pack("<4h", 3, -5, 9, 9)
    unknown = bytearray(whole)
    unknown[70:72] = struct.pack("<h", 9999)
    return {
        "cut.nii": whole[: len(whole) // 2],
        "head.nii": whole[:100],
        "cut.nii.gz": gzip.compress(whole)[:300],
        "text.nii.gz": b"<html>quota exceeded</html>",
        "text.nii": b"<html>quota exceeded</html>" * 50,
        "empty.nii": b"",
        "bomb.nii": bytes(bomb),
        "bomb.nii.gz": gzip.compress(bytes(bomb)),
        "negative.nii": bytes(negative),
        "type.nii": bytes(unknown),
    }


def test_damaged_files_are_one_line_that_names_them(tmp_path: Path) -> None:
    for name, content in damaged(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        fails(lambda path=path: read_volume(path), str(path))
        fails(lambda path=path: read_mask_volume(path), str(path))
    fails(lambda: layout(tmp_path / "bomb.nii"), "10000x10000x10000", "crop")
    fails(lambda: read_image(tmp_path / "no.nii.gz"), "does not exist")


def test_what_is_no_volume_of_numbers(tmp_path: Path) -> None:
    fails(lambda: layout(save_nifti(tmp_path / "4d.nii", np.zeros((3, 3, 3, 2), np.uint8))), "4d.nii", "3-D")
    fails(lambda: layout(save_nifti(tmp_path / "1d.nii", np.zeros(5, np.uint8))), "1d.nii")
    colour = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    fails(lambda: layout(save_nifti(tmp_path / "rgb.nii", colour)), "rgb.nii", "grey")
    fails(lambda: layout(save_nifti(tmp_path / "cx.nii", np.zeros((3, 3, 3), np.complex64))), "cx.nii")
    holes = np.full((3, 3, 3), np.nan, np.float32)
    fails(lambda: read_volume(save_nifti(tmp_path / "nan.nii", holes)), "nan.nii", "finite")
    fails(lambda: read_mask_volume(tmp_path / "nan.nii"), "nan.nii")
    flat = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    flat.header["srow_z"] = 0
    flat.header["sform_code"] = 1
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), None, flat.header), tmp_path / "flat.nii")
    fails(lambda: layout(tmp_path / "flat.nii"), "flat.nii", "affine")


@pytest.mark.shared
def test_real_pairs(shared: Path, tmp_path: Path) -> None:
    images = sorted((shared / "data" / "hippocampus_nifti" / "images").iterdir())
    assert len(images) == 24
    for image in images:
        check_pair(image, image.parents[1] / "labels" / image.name)
    mask = images[0].parents[1] / "labels" / images[0].name
    labels = read_mask_volume(mask)
    assert set(np.unique(labels)) == {0, 1, 2}
    write_labels_like(tmp_path / "a.nii.gz", labels.astype(np.uint8), images[0])
    np.testing.assert_array_equal(nibabel.load(tmp_path / "a.nii.gz").get_fdata(), nibabel.load(mask).get_fdata())
