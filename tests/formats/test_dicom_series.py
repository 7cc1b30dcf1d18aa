"""Series in space. Oracles: the geometry they were made with, nibabel's and highdicom's reading of what is written."""

from __future__ import annotations

import random
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from helpers import fails
from volumes import SECRET, save_dicom, save_series, sequence

from segdistill.formats import read_image, read_volume
from segdistill.formats.dicom_seg import read_seg, write_series_seg
from segdistill.formats.dicom_series import (
    find_series,
    read_series,
    series_affine,
    series_of,
    sort_out,
    write_series_nifti,
)

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 3000, (5, 6, 8)).astype(np.uint16)
LABELS = RNG.integers(0, 3, (5, 6, 8)).astype(np.uint8)


def shuffled(files: list[Path]) -> list[Path]:
    return random.Random(3).sample(files, len(files))


def test_files_are_ordered_in_space_whatever_their_names_and_numbers(tmp_path: Path) -> None:
    files = save_series(tmp_path, VOLUME, WindowCenter=1500, WindowWidth=3000)
    (series,), alone = find_series(shuffled(files))
    assert list(series.files) == files
    assert alone == []
    assert series.spacing == pytest.approx((3, 0.5, 0.7))
    assert len(series.uid_hash) == 16
    assert "1.2.3.4" not in repr(series)
    images = read_series(series)
    assert images.shape == VOLUME.shape
    for k, path in enumerate(files):
        np.testing.assert_array_equal(images[k], read_image(path)[..., 0])


def test_one_window_over_a_series_without_any(tmp_path: Path) -> None:
    files = save_series(tmp_path, VOLUME // np.arange(1, 6).astype(np.uint16)[:, None, None])
    values = (VOLUME // np.arange(1, 6)[:, None, None]).astype(float)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.rint(np.clip((values - low) / (high - low) * 255, 0, 255))
    assert np.abs(read_series(find_series(files)[0][0]) - expected).max() <= 1


def rising(folder: Path, **elements) -> list[Path]:
    folder.mkdir()
    return save_series(folder, VOLUME // np.arange(5, 0, -1).astype(np.uint16)[:, None, None], **elements)


def test_a_slice_alone_is_shown_as_in_its_series(tmp_path: Path) -> None:
    """Also beside another series, a picture and files that are none."""
    files = rising(tmp_path / "a")
    expected = read_series(find_series(files)[0][0])
    means = expected.mean((1, 2))
    assert means[-1] > 3 * means[0]
    save_series(tmp_path, VOLUME, SeriesInstanceUID="1.2.3.9")
    for number, path in enumerate(sorted(tmp_path.glob("*.dcm"))):
        path.rename(tmp_path / "a" / f"other{number}.dcm")
    (tmp_path / "a" / "damaged.dcm").write_bytes(b"nothing")
    save_dicom(tmp_path / "a" / "still.dcm", VOLUME[0])
    for k, path in enumerate(files):
        np.testing.assert_array_equal(read_image(path)[..., 0], expected[k])
    own = read_image(save_dicom(tmp_path / "alone.dcm", VOLUME[0] // 5))[..., 0]
    assert own.mean() > 2 * expected[0].mean()


def test_one_slice_without_a_window_takes_it_from_all(tmp_path: Path) -> None:
    files = rising(tmp_path / "a", WindowCenter=300, WindowWidth=600)
    own = read_image(files[0])[..., 0]
    one = pydicom.dcmread(files[3])
    del one.WindowWidth
    one.save_as(tmp_path / "a" / "new.dcm")
    files[3].unlink()
    found = find_series(sorted((tmp_path / "a").iterdir()))[0][0]
    shared = [read_image(path)[..., 0] for path in found.files]
    np.testing.assert_array_equal(shared, read_series(found))
    assert not np.array_equal(shared[0], own)


def test_no_window_is_shared_where_files_lie_at_one_place(tmp_path: Path) -> None:
    files = rising(tmp_path / "a")
    shared = read_image(files[0])
    (tmp_path / "a" / "copy.dcm").write_bytes(files[0].read_bytes())
    alone = read_image(tmp_path / "a" / "copy.dcm")
    assert alone.mean() > 2 * shared.mean()


@pytest.mark.parametrize(
    ("orientation", "step"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, 3)),
        ((1, 0, 0, 0, 1, 0), (0, 0.8, 3)),  # a tilted gantry
        ((0, 1, 0, 0, 0, -1), (-2, 0, 0)),
        ((1, 0, 0, 0, 0, -1), (0, 2, 0)),
        ((0.8, 0.6, 0, -0.6, 0.8, 0), (0, 0, 1.5)),
    ],
)
def test_the_affine_puts_every_voxel_where_dicom_says(tmp_path: Path, orientation: tuple, step: tuple) -> None:
    files = save_series(tmp_path, VOLUME, step=step, ImageOrientationPatient=list(orientation))
    (series,), _ = find_series(shuffled(files))
    assert list(series.files) == files
    affine = series_affine(series)
    for k, row, column in ((0, 0, 0), (4, 5, 7), (2, 1, 6)):
        head = pydicom.dcmread(files[k])
        along, down = np.split(np.array(head.ImageOrientationPatient, float), 2)
        lps = np.array(head.ImagePositionPatient, float) + along * column * 0.7 + down * row * 0.5
        np.testing.assert_allclose((affine @ [column, row, k, 1])[:3], lps * [-1, -1, 1], atol=1e-6)
    write_series_nifti(tmp_path / "a.nii.gz", LABELS, series)
    back = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(back.dataobj), LABELS.transpose(2, 1, 0))
    assert back.header.get_xyzt_units()[0] == "mm"
    if back.header["qform_code"]:
        np.testing.assert_allclose(back.get_qform(), affine, atol=1e-3)
    np.testing.assert_allclose(back.header.get_zooms(), (0.7, 0.5, np.linalg.norm(step)), rtol=1e-6)
    assert bool(back.header["qform_code"]) == (step != (0, 0.8, 3))


def test_groups_and_what_stands_alone(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    first = save_series(tmp_path / "a", VOLUME)
    second = save_series(tmp_path / "b", VOLUME[:3], SeriesInstanceUID="9.9")
    scout = save_series(tmp_path / "c", VOLUME[:1], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])  # same series UID
    photo = save_dicom(tmp_path / "photo", VOLUME[0])
    cine = save_dicom(tmp_path / "cine.dcm", VOLUME)
    series, alone = find_series([photo, *scout, *shuffled(second), *shuffled(first), cine])
    assert [list(one.files) for one in series] == [second, first]
    assert alone == [photo, *scout, cine]
    assert series[0].uid_hash != series[1].uid_hash
    assert find_series([]) == ([], [])


def test_series_of_one_uid_have_hashes_of_their_own(tmp_path: Path) -> None:
    """Of another orientation, size or spacing; what `find_series` takes for one series has one."""
    other = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, {}, {"PixelSpacing": [0.6, 0.7]}, {}
    files = []
    for number, elements in enumerate(other):
        (tmp_path / str(number)).mkdir()
        step = (3, 0, 0) if number == 0 else (0, 0, 3)
        files += save_series(tmp_path / str(number), VOLUME[:, : 5 + number % 3], step=step, **elements)
    found = find_series(files)[0]
    assert len({one.uid_hash for one in found}) == len(found) == 4
    assert [series_of(one.files[2]).uid_hash for one in found] == [one.uid_hash for one in found]


def test_gaps_and_copies_stop(tmp_path: Path) -> None:
    files = save_series(tmp_path, VOLUME)
    fails(lambda: find_series(files[:2] + files[3:]), "4 slices", "not evenly spaced", "3.000 to 6.000 mm")
    (tmp_path / "b").mkdir()
    fails(lambda: find_series(files + save_series(tmp_path / "b", VOLUME)), "one position")
    (tmp_path / "c").mkdir()
    bent = save_series(tmp_path / "c", VOLUME)
    data = pydicom.dcmread(bent[2])
    data.ImagePositionPatient[1] += 0.5
    data.save_as(bent[2])
    fails(lambda: find_series(bent), "evenly")
    fails(lambda: find_series([*files, tmp_path / "no.dcm"]), "no.dcm")
    (tmp_path / "d").mkdir()
    (tmp_path / "no.dcm").touch()
    other = save_series(tmp_path / "d", VOLUME[:2], SeriesInstanceUID="9.9")
    found = sort_out([tmp_path / "no.dcm", *other, *bent, *bent[:1]])
    assert [list(one.files) for one in found.series] == [other]
    assert found.alone == []
    assert [set(paths) for paths, _ in found.broken] == [{tmp_path / "no.dcm"}, set(bent)]
    series = find_series(files)[0][0]
    with pytest.raises(ValueError, match="series of"):
        write_series_nifti(tmp_path / "a.nii", LABELS[1:], series)
    fails(lambda: write_series_nifti(tmp_path / "a.dcm", LABELS, series), ".nii")


def enhanced(path: Path, positions: list[float]) -> Path:
    frames = [sequence(PlanePositionSequence=sequence(ImagePositionPatient=[0, 0, z]))[0] for z in positions]
    shared = sequence(
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=sequence(PixelSpacing=[0.5, 0.7], SliceThickness=9),
    )
    groups = {"PerFrameFunctionalGroupsSequence": pydicom.Sequence(frames), "SharedFunctionalGroupsSequence": shared}
    return save_dicom(path, VOLUME, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", **groups)


def test_one_file_as_a_series(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "a.dcm", [8, 6, 4, 2, 0])  # towards the feet: the affine follows
    series = series_of(path)
    assert series.spacing == pytest.approx((2, 0.5, 0.7))
    np.testing.assert_allclose(series_affine(series)[:3, 2], [0, 0, -2])
    np.testing.assert_array_equal(read_series(series), read_volume(path))
    write_series_nifti(tmp_path / "a.nii", LABELS, series)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii").dataobj), LABELS.transpose(2, 1, 0))
    fails(lambda: series_of(enhanced(tmp_path / "b.dcm", [0, 6, 2, 8, 4])), "evenly")
    fails(lambda: series_of(save_dicom(tmp_path / "us.dcm", VOLUME)), "us.dcm", "PNG", "FILE.dcm#4")
    single = save_series(tmp_path, VOLUME[:1])[0]
    assert series_of(single).spacing == (2.5, 0.5, 0.7)
    write_series_nifti(tmp_path / "one.nii", LABELS[:1], series_of(single))
    assert nibabel.load(tmp_path / "one.nii").shape == (8, 6, 1)


@pytest.mark.parametrize("kind", ["files", "enhanced", "empty"])
def test_segmentation_objects_read_back(tmp_path: Path, kind: str) -> None:
    if kind == "enhanced":
        series = series_of(enhanced(tmp_path / "a.dcm", [0, 2, 4, 6, 8]))
        data = pydicom.dcmread(tmp_path / "a.dcm")
        data.save_as(tmp_path / "a.dcm")
    else:
        series = find_series(shuffled(save_series(tmp_path, VOLUME)))[0][0]
    labels = LABELS * (kind != "empty")
    write_series_seg(tmp_path / "seg.dcm", labels, series, ("left ventricle", "myocardium"))
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == ["left ventricle", "myocardium"]
    assert seg.get_segment_description(1).SegmentAlgorithmType == "AUTOMATIC"
    assert str(seg.PatientName) == SECRET  # part of the record
    if kind == "files":
        uids = [pydicom.dcmread(path).SOPInstanceUID for path in series.files]
        np.testing.assert_array_equal(
            seg.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True), labels
        )
    if kind != "empty":
        volume = seg.get_volume(combine_segments=True)
        lps_to_ras = np.diag([-1.0, -1, 1, 1])
        read = lps_to_ras @ volume.affine @ np.eye(4)[:, [2, 1, 0, 3]]
        order = 1 if np.allclose(read[:3, 2], series_affine(series)[:3, 2]) else -1
        np.testing.assert_array_equal(volume.array[::order], labels)


@pytest.mark.parametrize("kind", ["files", "enhanced", "single"])
@pytest.mark.parametrize("slices", [[2, 3], [0, 4], [3], []], ids=str)
def test_slices_without_labels_read_back_too(tmp_path: Path, kind: str, slices: list[int]) -> None:
    """The file holds the others alone."""
    if kind == "enhanced":
        series = series_of(enhanced(tmp_path / "a.dcm", [8, 6, 4, 2, 0]))
    else:
        files = save_series(tmp_path, VOLUME[: None if kind == "files" else 1])
        series = find_series(shuffled(files))[0][0] if kind == "files" else series_of(files[0])
    labels = (LABELS * np.isin(np.arange(5), slices)[:, None, None])[: None if kind != "single" else 1]
    write_series_seg(tmp_path / "seg.dcm", labels.astype(np.uint8), series, ("a", "b"))
    np.testing.assert_array_equal(read_seg(tmp_path / "seg.dcm", series), labels)


def test_a_segmentation_of_another_series_is_one_line(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (find_series(save_series(tmp_path / name, VOLUME))[0][0] for name in "ab")
    write_series_seg(tmp_path / "seg.dcm", LABELS, first, ("a", "b"))
    fails(lambda: read_seg(tmp_path / "seg.dcm", second), "seg.dcm", "other images")


def test_segmentation_needs_a_complete_source(tmp_path: Path) -> None:
    series = find_series(save_series(tmp_path, VOLUME))[0][0]
    with pytest.raises(ValueError, match="no name"):
        write_series_seg(tmp_path / "seg.dcm", LABELS, series, ("one",))
    for path in series.files:
        data = pydicom.dcmread(path)
        del data.StudyInstanceUID
        data.save_as(path)
    fails(lambda: write_series_seg(tmp_path / "seg.dcm", LABELS, series, ("a", "b")), "StudyInstanceUID", "NIfTI")
    assert not (tmp_path / "seg.dcm").exists()
