"""Volumes as a person uses them: train on NIfTI, predict NIfTI, score in mm, evaluate any tool's volumes."""

import csv
import json

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers import make_volumes
from PIL import Image
from volumes import SECRET, dataset, save_dicom, save_series

from segdistill.cli import main
from segdistill.formats import read_mask
from segdistill.metrics.scores import score_image

FAST = ["--size", "32", "--iterations", "60", "--supervised.batch-size", "4", "--precision", "32", "--val", "7"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    data = make_volumes(root / "Köpfe 1")
    for name, extra in (("run", []), ("near", ["--neighbours", "1"])):
        words = ["train", str(data), "--out", str(root / name), "--cache", str(root / "cache"), *FAST, "--test", "14"]
        assert main([*words, *extra]) == 0
    return root


def predict(work, run, out, *extra):
    assert main(["predict", str(work / run), str(work / "Köpfe 1" / "images"), "-o", str(work / out), *extra]) == 0
    return sorted((work / out).rglob("*.nii.gz"))


def test_scores_are_per_volume_in_mm(work):
    summary = json.loads((work / "run" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["kind"], summary["unit"], summary["images"]) == ("volume", "mm", 2)
    assert summary["mean"]["dice"]["mean"] > 0.5  # it has learnt something, so what follows compares no blanks
    report = (work / "run" / "report.html").read_text(encoding="utf-8")
    assert "HD95 (mm)" in report
    assert "<h2>Volumes</h2>" in report


def test_volumes_of_another_tool_must_lie_where_the_references_lie(work, tmp_path, capsys):
    def evaluated(change):
        (tmp_path / "predicted").mkdir(exist_ok=True)
        for path in (work / "Köpfe 1" / "labels").iterdir():
            image = nib.load(path)
            nib.save(change(np.asanyarray(image.dataobj), image.affine), tmp_path / "predicted" / path.name)
        code = main(["evaluate", str(tmp_path / "predicted"), str(work / "Köpfe 1"), "--out", str(tmp_path / "out")])
        return code, " ".join(capsys.readouterr().err.split())

    assert evaluated(lambda voxels, affine: nib.Nifti1Image(voxels, affine))[0] == 0
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 19  # stored from the other end, at the same place
    assert evaluated(lambda voxels, affine: nib.Nifti1Image(voxels[::-1], affine @ flip))[0] == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["mean"]["dice"]["mean"] == 1
    elsewhere = np.eye(4)
    elsewhere[0, 3] = 2  # voxels
    code, said = evaluated(lambda voxels, affine: nib.Nifti1Image(voxels, affine @ elsewhere))
    assert code == 2
    assert "its affine differs" in said
    code, said = evaluated(lambda voxels, affine: nib.Nifti1Image(voxels[:, :, :5], affine))
    assert code == 2
    assert "(slices, rows, columns)" in said


@pytest.mark.parametrize("run", ["run", "near"])
def test_a_volume_comes_back_in_its_own_geometry_and_scores_the_same(work, run):
    written = predict(work, run, f"out {run}")
    assert len(written) == 8
    with (work / run / "scores.csv").open(encoding="utf-8") as file:
        scored = {row["image"]: row for row in csv.DictReader(file)}
    assert len(scored) == 2
    for path in written:
        source = nib.load(work / "Köpfe 1" / "images" / path.name)
        reference = np.asanyarray(nib.load(work / "Köpfe 1" / "labels" / path.name).dataobj)
        result = nib.load(path)
        assert result.shape == source.shape
        np.testing.assert_array_equal(result.affine, source.affine)
        assert result.header.get_zooms() == source.header.get_zooms()
        name = f"images/{path.name.removesuffix('.nii.gz')}"
        if name in scored:  # in the file's own axes, with its own zooms: the scores do not know how it was sliced
            (row,) = score_image(np.asanyarray(result.dataobj), reference, classes=2, spacing=source.header.get_zooms())
            for metric in ("dice", "hd95", "assd", "nsd"):
                assert row[metric] == pytest.approx(float(scored[name][metric]), rel=1e-6)


def test_areas_are_in_cubic_millimetres_and_a_second_run_keeps_them(work):
    written = predict(work, "run", "areas", "--probabilities=true", "--overlays=true")
    table = (work / "areas" / "areas.csv").read_text(encoding="utf-8")
    with (work / "areas" / "areas.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == "foreground"]
    for path, row in zip(written, rows, strict=True):
        labels = np.asanyarray(nib.load(path).dataobj)
        assert int(row["pixels"]) == labels.sum()
        assert float(row["mm2_or_mm3"]) == pytest.approx(labels.sum() * 2 * 1.5 * 4, rel=1e-5)
        assert path.with_name(path.name.replace(".nii.gz", "_overlay.png")).exists()
        with np.load(path.with_name(path.name.replace(".nii.gz", "_prob.npz"))) as stored:
            assert stored["probabilities"].shape == (2, 7, 20, 24)
    predict(work, "run", "areas", "--probabilities=true", "--overlays=true")
    assert (work / "areas" / "areas.csv").read_text(encoding="utf-8") == table


def test_a_slice_is_predicted_as_an_image(work, tmp_path):
    volume = next((work / "Köpfe 1" / "images").iterdir())
    for given, out in ((f"{volume}#3", "one"), (f"{volume}#3", "one"), (volume, "whole")):  # kept the second time
        assert main(["predict", str(work / "run"), str(given), "-o", str(tmp_path / out)]) == 0
    (mask,) = (tmp_path / "one").glob("*#3.png")
    labels = np.asarray(Image.open(mask))
    np.testing.assert_array_equal(labels, read_mask(tmp_path / "whole" / f"{volume.name}#3"))
    with (tmp_path / "one" / "areas.csv").open(encoding="utf-8") as file:
        (row,) = [row for row in csv.DictReader(file) if row["class"] == "foreground"]
    assert int(row["pixels"]) == labels.sum() > 0
    assert float(row["mm2_or_mm3"]) == pytest.approx(labels.sum() * 2 * 1.5, rel=1e-5)


def test_evaluate_scores_volumes_of_any_tool(work, capsys):
    predict(work, "run", "predicted")
    out = work / "evaluated"
    words = ["evaluate", str(work / "predicted"), str(work / "Köpfe 1"), "--split", "all", "-o", str(out)]
    assert main(words) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["kind"], summary["unit"], summary["images"]) == ("volume", "mm", 8)
    assert (
        main(["evaluate", str(work / "run"), str(work / "Köpfe 1"), "--split", "all", "-o", str(work / "again")]) == 0
    )
    again = json.loads((work / "again" / "summary.json").read_text(encoding="utf-8"))
    assert again["mean"]["dice"] == summary["mean"]["dice"]
    assert main(["evaluate", str(work / "predicted"), str(work / "Köpfe 1" / "labels")]) == 0


def test_hdf5_comes_back_as_hdf5(work, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.random.default_rng(0).uniform(0, 1, (3, 40, 30)).astype(np.float32)
    assert main(["predict", str(work / "run"), str(tmp_path / "a.h5"), "-o", str(tmp_path / "out")]) == 0
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert (file["label"].shape, file["label"].dtype) == ((3, 40, 30), np.uint8)


def test_a_student_of_neighbours_refuses_single_images(work, tmp_path, tiny_set, capsys):
    assert main(["predict", str(work / "near"), str(tiny_set / "images" / "000.png"), "-o", str(tmp_path / "o")]) == 1
    assert "neighbouring slices" in capsys.readouterr().out
    assert main(["evaluate", str(work / "near"), str(tiny_set)]) == 2
    assert "belongs to no volume" in capsys.readouterr().err


@pytest.fixture
def dicom(tmp_path):
    """A series of five slices, a single image without a place in the patient, and a broken file."""
    folder = tmp_path / "DICOM ü"
    (folder / "series").mkdir(parents=True)
    volume = np.random.default_rng(0).integers(0, 900, (5, 24, 28)).astype(np.int16)
    save_series(folder / "series", volume, WindowCenter=450, WindowWidth=900)
    save_dicom(folder / "x-ray.dcm", volume[0], Modality="DX")
    (folder / "broken.dcm").write_bytes(b"")
    return folder


def test_a_dicom_series_becomes_nifti_or_a_segmentation_object(work, dicom, tmp_path, capsys):
    from segdistill.formats import find_series, read_seg
    from segdistill.formats.dicom_series import series_affine

    out = tmp_path / "out"
    (dicom / "broken.dcm").unlink()
    assert main(["predict", str(work / "near"), str(dicom / "series"), "-o", str(out)]) == 0
    ((series,), _) = find_series(sorted((dicom / "series").iterdir()))
    (written,) = out.rglob("*.nii.gz")
    result = nib.load(written)
    np.testing.assert_allclose(result.affine, series_affine(series))
    assert result.shape == (28, 24, 5)
    words = ["predict", str(work / "near"), str(dicom / "series"), "-o", str(tmp_path / "seg"), "--dicom-seg", "true"]
    assert main(words) == 0
    (segmentation,) = (tmp_path / "seg").rglob("*.dcm")
    np.testing.assert_array_equal(read_seg(segmentation, series).transpose(2, 1, 0), np.asanyarray(result.dataobj))
    before = segmentation.read_bytes()
    assert main(words) == 0  # there already: read back for the table
    assert segmentation.read_bytes() == before
    assert "1 there already" in " ".join(capsys.readouterr().out.split())


def test_dicom_files_without_a_suffix_are_dicom_where_they_are_named(work, dicom, tmp_path):
    for file in (dicom / "series").iterdir():
        file.rename(file.with_suffix(""))
    alone = save_dicom(tmp_path / "IM1", np.zeros((24, 28), np.uint8), PixelSpacing=[0.5, 0.7])
    several = save_dicom(tmp_path / "IM2", np.zeros((3, 24, 28), np.uint8), PixelSpacing=[0.5, 0.7])
    given = [str(path) for path in (*(dicom / "series").iterdir(), alone)]
    assert main(["predict", str(work / "run"), *given, "-o", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob("IM*")} == {"IM1.png"}
    assert len(list((tmp_path / "out").glob("series-*.nii.gz"))) == 1
    with (tmp_path / "out" / "areas.csv").open(encoding="utf-8") as file:
        found = {row["image"]: row for row in csv.DictReader(file) if row["class"] == "background"}
    assert float(found["IM1"]["mm2_or_mm3"]) == pytest.approx(int(found["IM1"]["pixels"]) * 0.5 * 0.7)
    words = ["predict", str(work / "run"), *given[:-1], "-o", str(tmp_path / "seg"), "--dicom-seg", "true"]
    assert main(words) == 0
    assert len(list((tmp_path / "seg").glob("*.dcm"))) == 1
    assert main(["predict", str(work / "run"), str(several), "-o", str(tmp_path / "none")]) == 1


def test_frames_without_a_place_are_predicted_one_by_one(work, tmp_path, capsys):
    cine = save_dicom(tmp_path / "cine.dcm", np.zeros((3, 24, 28), np.uint8), Modality="US")
    assert main(["predict", str(work / "run"), str(cine), "-o", str(tmp_path / "out")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "for PNG masks give its frames, FILE.dcm#0 to FILE.dcm#2" in said
    frames = [f"{cine}#{number}" for number in range(3)]
    assert main(["predict", str(work / "run"), *frames, "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("cine#?.png"))) == 3


def save_segmentation(folder):
    """Of the series in a folder's subfolder."""
    from segdistill.formats import find_series, write_series_seg

    ((series,), _) = find_series(sorted((folder / "series").iterdir()))
    write_series_seg(folder / "mask.dcm", np.ones((5, 24, 28), np.uint8), series, ["a"])


def test_a_series_with_a_gap_fails_alone(work, dicom, tmp_path, capsys):
    (dicom / "broken.dcm").unlink()
    next(path for path in (dicom / "series").iterdir() if pydicom.dcmread(path).ImagePositionPatient[2] == 36).unlink()
    assert main(["predict", str(work / "run"), str(dicom), "-o", str(tmp_path / "out")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "not evenly spaced" in said
    assert "1 written, 0 there already, 1 unreadable" in said


def test_single_dicom_images_become_png_and_a_broken_one_is_skipped(work, dicom, tmp_path, capsys):
    save_segmentation(dicom)
    report = dataset(np.zeros((8, 8), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22")
    del report.PixelData, report.Rows, report.Columns, report.PhotometricInterpretation
    report.save_as(dicom / "report.dcm", enforce_file_format=True)
    assert main(["predict", str(work / "run"), str(dicom), "-o", str(tmp_path / "out")]) == 1
    assert sorted(p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()) == [".csv", ".gz", ".jsonl", ".png"]
    said = " ".join(capsys.readouterr().out.split())
    for name, problem in {"broken": "is empty", "mask": "a DICOM segmentation", "report": "without an image"}.items():
        assert f"{name}.dcm" in said.replace(" ", "")
        assert problem in said
    assert "2 written, 0 there already, 3 unreadable" in said
    words = ["predict", str(work / "run"), str(dicom / "x-ray.dcm"), "-o", str(tmp_path / "seg"), "--dicom-seg", "true"]
    assert main(words) == 1
    assert "no position in the patient" in capsys.readouterr().out


def test_no_patient_reaches_a_run(dicom, tmp_path, capsys):
    """Names, ids and dates of DICOM files: not in logs, reports, students or predictions."""
    (dicom / "broken.dcm").unlink()
    (dicom / "images").mkdir()
    (dicom / "masks").mkdir()
    for number, file in enumerate(sorted((dicom / "series").iterdir())):
        file.rename(dicom / "images" / file.name)
        mask = np.zeros((24, 28), np.uint8)
        mask[4 : 12 + number, 5:20] = 1
        Image.fromarray(mask).save(dicom / "masks" / f"{file.stem}.png")
    files = sorted((dicom / "images").iterdir())  # one volume, so what is scored is of it too
    parts = ["train"] * (len(files) - 1) + ["test"]
    lines = [f"images/{f.name},masks/{f.stem}.png,{part}" for f, part in zip(files, parts, strict=True)]
    (dicom / "manifest.csv").write_text("\n".join(["image,mask,split", *lines]), encoding="utf-8")
    run = tmp_path / "run"
    words = ["train", str(dicom), "--out", str(run), "--cache", str(tmp_path / "cache"), *FAST, "--iterations", "2"]
    assert main([*words, "--val", "0", "--allow-leakage", "true"]) == 0
    assert main(["predict", str(run), str(dicom / "images"), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    files = [path for folder in (run, tmp_path / "out") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    secrets = [SECRET, "SecretID", "19700101", "1.2.3.4"]
    for text in [said.out, said.err, *(path.read_bytes().decode("latin-1") for path in files)]:
        assert not any(secret in text for secret in secrets)


def test_burned_in_text_is_warned_of(tmp_path, capsys):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20)).astype(np.uint8)
    dataset(pixels, Modality="US").save_as(tmp_path / "images" / "a.dcm", enforce_file_format=True)
    Image.fromarray((pixels > 99).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    assert main(["check", str(tmp_path)]) == 0
    assert "burned" in capsys.readouterr().out
