"""What is read of a source and written of its prediction. Oracle: the arrays and affines that were stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from volumes import save_dicom, save_nifti, save_series, sequence

from segdistill.deploy.card import Card
from segdistill.deploy.sources import Source, find_sources, read_slices, read_written, voxel_of, write_slices

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (4, 6, 5)])
def test_the_label_of_an_hdf5_file_has_the_shape_of_its_image(
    tmp_path: Path, card: Callable[..., Card], shape: tuple[int, ...]
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.zeros(shape, np.uint8)
    source = Source((tmp_path / "a.h5",), Path("a"))
    labels = RNG.integers(0, 3, read_slices(source).shape).astype(np.uint8)
    write_slices(tmp_path / "out.h5", labels, source, card(3))
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["label"][()], labels.reshape(shape))
    np.testing.assert_array_equal(read_written(tmp_path / "out.h5", source, card(3)), labels)
    with pytest.raises(ValueError, match="reshape"):
        write_slices(tmp_path / "out.h5", labels[:, 1:], source, card(3))


TILT = np.deg2rad(25)


@pytest.mark.parametrize("unit", [1, 3], ids=["metres", "micrometres"])
def test_a_voxel_of_a_sheared_nifti_is_the_affines_determinant(tmp_path: Path, unit: int) -> None:
    affine = np.diag([1, 2, 3, 1.0])
    affine[1, 2] = 3 * np.tan(TILT)  # slices of 3 mm whose step is 3.3
    affine[:3, :3] *= {1: 1e-3, 3: 1e3}[unit]
    path = save_nifti(tmp_path / "a.nii.gz", np.zeros((5, 6, 4), np.uint8), affine, xyzt_units=unit)
    assert voxel_of(Source((path,), Path("a"))) == pytest.approx(1 * 2 * 3)
    assert voxel_of(Source((Path(f"{path}#1"),), Path("a"))) == pytest.approx(1 * 2)
    affine[1, 2], affine[1, 0] = 0, affine[0, 0]  # rows and columns are not at right angles: a rhomboid
    path = save_nifti(tmp_path / "b.nii.gz", np.zeros((5, 6, 4), np.uint8), affine, xyzt_units=unit)
    assert voxel_of(Source((path,), Path("b"))) == pytest.approx(1 * 2 * 3)
    assert voxel_of(Source((Path(f"{path}#1"),), Path("b"))) == pytest.approx(1 * 2)


def test_a_voxel_of_a_tilted_series_is_that_of_its_nifti(tmp_path: Path, card: Callable[..., Card]) -> None:
    (tmp_path / "in").mkdir()
    tilted = [1, 0, 0, 0, float(np.cos(TILT)), float(-np.sin(TILT))]
    save_series(tmp_path / "in", np.zeros((4, 6, 5), np.uint16), step=(0, 0, 5), ImageOrientationPatient=tilted)
    (source,) = find_sources([tmp_path / "in"], tmp_path / "out")
    assert voxel_of(source) == pytest.approx(0.5 * 0.7 * 5 * np.cos(TILT))
    write_slices(tmp_path / "a.nii.gz", np.zeros((4, 6, 5), np.uint8), source, card(2))
    written = nibabel.load(tmp_path / "a.nii.gz")
    assert abs(np.linalg.det(written.affine[:3, :3])) == pytest.approx(voxel_of(source), rel=1e-5)
    np.testing.assert_allclose(written.header.get_zooms(), nibabel.affines.voxel_sizes(written.affine), rtol=1e-5)


@pytest.mark.parametrize("said", [None, 5.0, 2.5])
def test_a_voxel_of_a_multi_frame_file_is_by_its_frames_positions(tmp_path: Path, said: float | None) -> None:
    measures = {"PixelSpacing": [0.5, 0.8], "SliceThickness": 2} | ({"SpacingBetweenSlices": said} if said else {})
    shared = sequence(
        PixelMeasuresSequence=sequence(**measures),
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    )
    frames = [sequence(PlanePositionSequence=sequence(ImagePositionPatient=[0, 0, k * 2.5]))[0] for k in range(3)]
    groups = {"SharedFunctionalGroupsSequence": shared, "PerFrameFunctionalGroupsSequence": frames}
    path = save_dicom(tmp_path / "a.dcm", np.zeros((3, 6, 5), np.uint16), **groups)
    assert voxel_of(Source((path,), Path("a"))) == pytest.approx(0.5 * 0.8 * 2.5)
    assert voxel_of(Source((Path(f"{path}#1"),), Path("a"))) == pytest.approx(0.5 * 0.8)


def test_a_voxel_of_what_has_no_size(tmp_path: Path) -> None:
    grey = np.zeros((6, 5), np.uint8)
    assert voxel_of(Source((save_dicom(tmp_path / "a.dcm", grey),), Path("a"))) is None
    assert voxel_of(Source((save_dicom(tmp_path / "b.dcm", grey, PixelSpacing=[0.5, 2]),), Path("b"))) == 1
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["image"] = grey
    assert voxel_of(Source((tmp_path / "c.h5",), Path("c"))) is None
