"""Volumes and manifests that cannot be used: one line that says why and how to go on, exit code 2, nothing written."""

import gzip
import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
from helpers import make_volumes
from PIL import Image

from segdistill.cli import main

FIRST = "Kopf ä 0.nii.gz"
NEIGHBOURS = ("--neighbours", "1")
ALL_TRAIN = ("--val", "0", "--test", "0")


def nifti(path, data, affine=None, **header):
    image = nib.Nifti1Image(data, np.diag([2, 1.5, 4, 1]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)


def remake(root, kind, change):
    """Write the first volume's image or label anew."""
    path = root / kind / FIRST
    held = nib.load(path)
    nifti(path, change(np.asanyarray(held.dataobj)), held.affine)


def nan(data):
    data = data.astype(np.float32)
    data[3, 4, 5] = np.nan
    return data


def shifted(root):
    held = nib.load(root / "labels" / FIRST)
    nifti(root / "labels" / FIRST, np.asanyarray(held.dataobj), held.affine + np.eye(4, k=3) * 0.5)


def bomb(root):
    """A header that promises 27 thousand million voxels."""
    header = nib.Nifti1Header()
    header.set_data_shape((3000, 3000, 3000))
    header["vox_offset"] = 352
    (root / "images" / FIRST).write_bytes(gzip.compress(header.binaryblock + bytes(100)))


def manifest(root, *lines, header="image,mask,split,volume,slice"):
    (root / "manifest.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def slices(root, *numbers, size=(32, 32), mode="L"):
    """PNG slices of a test volume, and others to train on."""
    shutil.rmtree(root)
    (root / "images").mkdir(parents=True)
    lines = []
    parts = {"train": range(20, 26), "val": range(2), "test": numbers}
    for place, (part, number) in enumerate((part, n) for part, given in parts.items() for n in given):
        shape = size[place % 2] if isinstance(size[0], tuple) else size
        pixels = np.random.default_rng(place).integers(0, 255, (*shape, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(root / "images" / f"{place}.png")
        Image.fromarray((pixels[:, :, 0] > 200).astype(np.uint8)).save(root / "images" / f"m{place}.png")
        lines.append(f"images/{place}.png,images/m{place}.png,{part},{part},{number}")
    manifest(root, *lines)


def ssl4mis(root, names="a_slice_1", **datasets):
    shutil.rmtree(root)
    (root / "data" / "slices").mkdir(parents=True)
    (root / "train_slices.list").write_text(names + "\n", encoding="utf-8")
    with h5py.File(root / "data" / "slices" / "a_slice_1.h5", "w") as file:
        for key, value in datasets.items():
            file[key] = value


def address(root, image, mask=None):
    manifest(root, f"images/{image},labels/{mask or image}", header="image,mask")


def dicom(root, content):
    (root / "images" / FIRST).unlink()
    (root / "labels" / FIRST).unlink()
    (root / "images" / "a.dcm").write_bytes(content)


GREY, LABEL = np.zeros((8, 9), np.float32), np.eye(8, 9, dtype=np.uint8)
TRUNCATED = b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x14\x00"
CASES = {
    "truncated NIfTI": (lambda r: (r / "images" / FIRST).write_bytes((r / "images" / FIRST).read_bytes()[:900]), FIRST),
    "garbage as NIfTI": (lambda r: (r / "images" / FIRST).write_bytes(b"garbage" * 99), FIRST),
    "empty NIfTI": (lambda r: (r / "images" / FIRST).write_bytes(b""), FIRST),
    "NIfTI bomb": (bomb, FIRST),
    "4-D NIfTI": (lambda r: remake(r, "images", lambda d: np.stack([d, d], -1)), FIRST),
    "colour NIfTI": (
        lambda r: remake(r, "images", lambda d: np.zeros(d.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        FIRST,
    ),
    "complex NIfTI": (lambda r: remake(r, "images", lambda d: d.astype(np.complex64)), FIRST),
    "NaN in an image": (lambda r: remake(r, "images", nan), "finite"),
    "NaN in a mask": (lambda r: remake(r, "labels", nan), FIRST),
    "fractional mask": (lambda r: remake(r, "labels", lambda d: d + np.float32(0.5)), FIRST),
    "negative mask": (lambda r: remake(r, "labels", lambda d: d.astype(np.int16) - 1), "-1"),
    "grey levels as mask": (
        lambda r: remake(r, "labels", lambda d: np.arange(d.size, dtype=np.int16).reshape(d.shape)),
        "32",
    ),
    "mask of another size": (lambda r: remake(r, "labels", lambda d: d[:, :-1]), FIRST),
    "mask with fewer slices": (lambda r: remake(r, "labels", lambda d: d[:, :, :-1]), "slices"),
    "mask elsewhere in space": (shifted, "affine"),
    "mask without image": (lambda r: (r / "images" / FIRST).unlink(), "no image of the same name"),
    "PNG mask for a volume": (
        lambda r: (
            (r / "labels" / FIRST).unlink(),
            Image.fromarray(LABEL).save(r / "labels" / FIRST.replace(".nii.gz", ".png")),
        ),
        "slices",
    ),
    "two files of one name": (
        lambda r: nifti(r / "images" / FIRST.replace(".gz", ""), np.zeros((4, 5, 6), np.uint8)),
        "have one name",
    ),
    "no masks at all": (lambda r: shutil.rmtree(r / "labels"), "masks"),
    "slice that is not there": (lambda r: address(r, f"{FIRST}#99"), "no such slice", *ALL_TRAIN),
    "slice of a missing file": (lambda r: address(r, "gone.nii.gz#0"), "no file"),
    "one slice against all": (lambda r: address(r, f"{FIRST}#3", FIRST), "slices", *ALL_TRAIN),
    "slice given twice": (
        lambda r: manifest(r, *[f"images/{FIRST}#1,labels/{FIRST}#1"] * 2, header="image,mask"),
        "already on line",
    ),
    "gap in a volume": (lambda r: slices(r, 1, 2, 4), "follow one another"),
    "doubled slice": (lambda r: slices(r, 3, 3, 4), "follow one another"),
    "slice number": (lambda r: slices(r, 1, "two"), "whole number"),
    "sizes within a volume": (lambda r: slices(r, 1, 2, size=((32, 32), (32, 40))), "size"),
    "neighbours in colour": (lambda r: slices(r, 1, 2, mode="RGB"), "colour", *NEIGHBOURS),
    "neighbours across a gap": (lambda r: slices(r, 1, 2, 3, 5), "follow one another", *NEIGHBOURS),
    "two neighbours": (lambda r: None, "neighbours", "--neighbours", "2"),
    "HDF5 without label": (lambda r: ssl4mis(r, image=GREY), "label"),
    "HDF5 without image": (lambda r: ssl4mis(r, label=LABEL), "image"),
    "HDF5 sizes": (lambda r: ssl4mis(r, image=GREY, label=LABEL[1:]), "a_slice_1.h5", *ALL_TRAIN),
    "HDF5 text as image": (lambda r: ssl4mis(r, image="hello", label=LABEL), "a_slice_1.h5"),
    "list names a missing file": (lambda r: ssl4mis(r, "b", image=GREY, label=LABEL), "line 1"),
    "empty list": (lambda r: ssl4mis(r, "", image=GREY, label=LABEL), "no images"),
    "garbage as DICOM": (lambda r: dicom(r, b"garbage" * 99), "a.dcm"),
    "truncated DICOM": (lambda r: dicom(r, TRUNCATED), "a.dcm"),
    "empty DICOM": (lambda r: dicom(r, b""), "a.dcm"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(name, tmp_path, capsys):
    spoil, said, *extra = CASES[name]
    root = make_volumes(tmp_path / "set", count=3)
    spoil(root)
    run = tmp_path / "run"
    words = ["train", str(root), "--out", str(run), "--cache", str(tmp_path / "cache"), "--size", "32"]
    assert main([*words, "--iterations", "1", "--val", "1", "--test", "1", *extra]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
    assert not (run / "config.yaml").exists()  # so that the same command works once the data are mended


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: (p / FIRST).unlink(), "no mask for 1"),
        (lambda p: nifti(p / FIRST, np.zeros((20, 24, 3), np.uint8)), "slice"),
        (lambda p: nifti(p / FIRST, np.zeros((20, 23, 7), np.uint8)), FIRST.removesuffix(".nii.gz")),
        (lambda p: nifti(p / FIRST, np.full((20, 24, 7), 3, np.uint8)), "3"),
    ],
)
def test_predicted_volumes_that_do_not_fit(spoil, said, tmp_path, capsys):
    root = make_volumes(tmp_path / "set", count=2)
    predicted = tmp_path / "predicted"
    shutil.copytree(root / "labels", predicted)
    spoil(predicted)
    assert main(["evaluate", str(predicted), str(root)]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
