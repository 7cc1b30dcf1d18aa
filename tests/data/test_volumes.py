"""Files of slices become rows, rows become volumes, slices find their neighbours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from helpers import make_volumes
from PIL import Image

from segdistill.data.cache import open_cache
from segdistill.data.inspection import inspect
from segdistill.data.labels import build_mapping, scan_values
from segdistill.data.manifest import load_manifest
from segdistill.data.rows import Row
from segdistill.data.volumes import read_neighbours, volumes, voxel_spacing, with_neighbours
from segdistill.formats import layout, nifti, read_image, read_mask
from segdistill.formats.files import _Decoded
from segdistill.types import UserError


def row(name: str, volume: str = "v", slice: int | None = None, **other) -> Row:
    return Row(Path(name), None, volume=volume, slice=slice, **other)


def test_a_folder_of_nifti_pairs_becomes_slices_across_the_coarsest_axis(tmp_path):
    manifest = load_manifest(make_volumes(tmp_path / "Köpfe 1", count=2))
    assert len(manifest.rows) == 14
    first = manifest.rows[0]
    assert first.image.name == "Kopf ä 0.nii.gz#0"
    assert first.mask is not None
    assert first.mask.name == "Kopf ä 0.nii.gz#0"
    assert (first.volume, first.slice, first.spacing) == ("images/Kopf ä 0", 0, (4.0, 2.0, 1.5))
    assert read_image(first.image).shape == (20, 24, 3)
    held = np.asanyarray(nib.load(tmp_path / "Köpfe 1" / "labels" / "Kopf ä 0.nii.gz").dataobj)
    assert sum(int(read_mask(one.mask).sum()) for one in manifest.rows[:7]) == held.sum() > 0


def test_a_csv_may_name_single_slices(tmp_path):
    root = make_volumes(tmp_path / "set", count=1)
    text = "image,mask,volume,slice\nimages/Kopf ä 0.nii.gz#3,labels/Kopf ä 0.nii.gz#3,a,3\n"
    (root / "manifest.csv").write_text(text, encoding="utf-8")
    (only,) = load_manifest(root).rows
    assert (only.volume, only.slice, only.spacing) == ("a", 3, (4.0, 2.0, 1.5))


def test_named_slices_are_compared_with_their_masks_too(tmp_path):
    """The mask's file is mirrored: as whole files the two would be refused."""
    root = make_volumes(tmp_path / "set", count=1)
    file = root / "labels" / "Kopf ä 0.nii.gz"
    held = nib.load(file)
    nib.save(nib.Nifti1Image(np.asanyarray(held.dataobj), held.affine * np.array([[-1], [1], [1], [1]])), file)
    lines = [f"images/{file.name}#{k},labels/{file.name}#{k}" for k in range(3)]
    (root / "manifest.csv").write_text("\n".join(["image,mask", *lines]), encoding="utf-8")
    with pytest.raises(UserError, match="affine differs"):
        load_manifest(root)


def test_a_header_is_read_once_for_all_slices_that_a_csv_names(tmp_path, monkeypatch):
    root = make_volumes(tmp_path / "set", count=1)
    lines = [f"images/Kopf ä 0.nii.gz#{k},labels/Kopf ä 0.nii.gz#{k}" for k in range(3)]
    (root / "manifest.csv").write_text("\n".join(["image,mask", *lines]), encoding="utf-8")
    asked = []
    monkeypatch.setattr("segdistill.data.volumes.layout", lambda file: asked.append(file) or layout(file))
    assert len(load_manifest(root).rows) == 3
    assert asked == [root / "images" / "Kopf ä 0.nii.gz"]


@pytest.fixture
def ssl4mis(tmp_path) -> Path:
    root = tmp_path / "ssl4mis"
    (root / "data" / "slices").mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, shape: tuple[int, ...]) -> str:
        with h5py.File(root / "data" / f"{name}.h5", "w") as file:
            file["image"] = rng.uniform(0, 1, shape).astype(np.float32)
            file["label"] = rng.integers(0, 4, shape).astype(np.uint8)
        return name.removeprefix("slices/")

    slices = [write(f"slices/patient00{p}_frame01_slice_{k}", (32, 40)) for p in (1, 2) for k in (1, 2, 10)]
    (root / "train_slices.list").write_text("\n".join(slices) + "\n", encoding="utf-8")
    (root / "val.list").write_text(write("patient003_frame02", (5, 32, 40)) + "\n\n", encoding="utf-8")
    return root


def test_the_layout_of_ssl4mis(ssl4mis):
    rows = load_manifest(ssl4mis).rows
    assert [(one.split, one.patient, one.volume, one.slice) for one in rows] == [
        *(("train", f"patient00{p}", f"patient00{p}_frame01", k) for p in (1, 2) for k in (1, 2, 10)),
        *(("val", "patient003", "patient003_frame02", k) for k in range(5)),
    ]
    with h5py.File(ssl4mis / "data" / "patient003_frame02.h5") as file:
        np.testing.assert_array_equal(read_mask(rows[-1].mask), file["label"][4])
        np.testing.assert_allclose(read_image(rows[-1].image)[:, :, 1], 255 * file["image"][4], atol=0.51)


def test_volumes_keep_the_order_of_their_slices():
    rows = [row("c", slice=10), row("x", volume=""), row("a", slice=8), row("b", slice=9), row("d", "w")]
    assert [[one.image.name for one in group] for group in volumes(rows)] == [["a", "b", "c"], ["x"], ["d"]]


@pytest.mark.parametrize("numbers", [(1, 2, 4), (1, 1, 2), (3, 3)])
def test_slices_that_are_missing_or_doubled_are_refused(numbers):
    with pytest.raises(UserError, match=r"^volume v: its slices are [^\n]*$"):
        volumes([row(f"{i}", slice=number) for i, number in enumerate(numbers)])


def test_patients_do_not_share_a_volume():
    with pytest.raises(UserError, match=r"^volume ED: its slices are of 2 patients \(p1, p2\); [^\n]*p1_ED$"):
        volumes([row(f"{p}{k}", "ED", patient=p) for p in ("p1", "p2") for k in range(2)])


def test_a_patient_named_on_some_slices_is_that_of_all(tmp_path):
    root = make_volumes(tmp_path / "set", count=2)
    lines = ["image,mask,patient"]
    lines += [f"images/Kopf ä {i}.nii.gz#{k},,{f'p{i}' if k < 2 else ''}" for i in range(2) for k in range(4)]
    (root / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    assert [one.patient for one in load_manifest(root).rows] == ["p0"] * 4 + ["p1"] * 4


@pytest.mark.parametrize(
    ("numbers", "spacing", "expected"),
    [
        ((1, 2), (5.0, 2.0, 1.0), (5.0, 2.0, 1.0)),
        ((0, 5, 10), (5.0, 2.0, 1.0), (25.0, 2.0, 1.0)),  # every fifth slice
        ((-5, 0, 5), (5.0, 2.0, 1.0), (25.0, 2.0, 1.0)),
        ((1, 2), (2.0, 1.0), None),  # the distance of the slices is unknown
        ((1, 2), None, None),
    ],
)
def test_spacing_of_a_volume(numbers, spacing, expected):
    assert voxel_spacing([row(f"{n}", slice=n, spacing=spacing) for n in numbers]) == expected


def test_spacing_of_an_image():
    assert voxel_spacing([row("a", volume="", spacing=(5.0, 2.0, 1.0))]) == (2.0, 1.0)


def test_neighbours_are_channels_in_the_cache(ssl4mis, tmp_path):
    rows = [one for one in load_manifest(ssl4mis).rows if one.split == "val"]
    mapping = build_mapping(scan_values([one.mask for one in rows]))
    cache = open_cache(rows, mapping, size=(32, 40), fit="squash", folder=tmp_path / "cache", neighbours=1)
    with h5py.File(ssl4mis / "data" / "patient003_frame02.h5") as file:
        volume = file["image"][:]
    for k in range(5):
        expected = np.stack([volume[max(k - 1, 0)], volume[k], volume[min(k + 1, 4)]], axis=2) * 255
        np.testing.assert_allclose(cache.images[k], expected, atol=0.51)
    alone = open_cache(rows, mapping, size=(32, 40), fit="squash", folder=tmp_path / "cache")
    np.testing.assert_array_equal(alone.images[2], np.repeat(cache.images[2][:, :, 1:2], 3, axis=2))


def test_slices_in_a_random_order_decode_each_volume_once(tmp_path, monkeypatch):
    """Of more volumes than are kept; what comes out is in the order of the rows."""
    sorted_rows = load_manifest(make_volumes(tmp_path / "set", count=12)).rows
    order = np.random.default_rng(0).permutation(len(sorted_rows))
    rows = [sorted_rows[i] for i in order]
    decoded = []
    for reader in ("read_volume", "read_mask_volume"):
        real = getattr(nifti, reader)
        monkeypatch.setattr(nifti, reader, lambda file, real=real: decoded.append(file) or real(file))

    def anew() -> int:
        count = len(decoded)
        decoded.clear()
        monkeypatch.setattr("segdistill.formats.files._decoded", _Decoded())
        return count

    anew()
    mapping = build_mapping(scan_values([one.mask for one in rows], threads=1))
    assert anew() == 12
    seen = inspect(rows, threads=1)
    assert anew() == 24
    settings = {"size": (20, 24), "fit": "squash", "threads": 1}
    cache = open_cache(rows, mapping, **settings, folder=tmp_path / "a")
    assert anew() == 24
    for i in (0, 40, 83):
        np.testing.assert_array_equal(cache.images[i], read_image(rows[i].image))
        np.testing.assert_array_equal(cache.masks[i], read_mask(rows[i].mask))
        assert sum(seen[i].values.values()) == 20 * 24
        assert seen[i].values.get(1, 0) == read_mask(rows[i].mask).sum()
    straight = open_cache(sorted_rows, mapping, **settings, folder=tmp_path / "b")
    np.testing.assert_array_equal(cache.images, straight.images[order])
    assert cache.data_hash != straight.data_hash  # of the files in the order of the rows, as before


def test_neighbours_need_grey_volumes(tmp_path):
    paths = []
    for k, mode in enumerate(("L", "RGB")):
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (4, 5, 3), np.uint8)).convert(mode).save(paths[k])
    rows = [replace(row("", slice=k), image=path) for k, path in enumerate(paths)]
    with pytest.raises(UserError, match="colour"):
        read_neighbours(with_neighbours(rows)[paths[0]])
    with pytest.raises(UserError, match="belongs to no volume"):
        with_neighbours([row("a", volume="")])


def test_neighbours_are_slices_without_masks_too():
    slices = [row(f"{k}.png", slice=k) for k in range(6)] + [row("other.png", "w", 0)]
    around = with_neighbours([slices[2], slices[4]], slices)
    assert around[Path("2.png")] == (Path("1.png"), Path("2.png"), Path("3.png"))
    assert around[Path("4.png")] == (Path("3.png"), Path("4.png"), Path("5.png"))
