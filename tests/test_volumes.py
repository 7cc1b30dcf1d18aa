"""Volumes as a person uses them: train on NIfTI, predict NIfTI, score in mm, evaluate any tool's volumes."""

import csv
import json

import h5py
import nibabel as nib
import numpy as np
import pytest
from helpers import make_volumes

from segdistill.cli import main
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


def test_evaluate_scores_volumes_of_any_tool(work, capsys):
    predict(work, "run", "predicted")
    out = work / "evaluated"
    words = ["evaluate", str(work / "predicted"), str(work / "Köpfe 1"), "--split", "all", "-o", str(out)]
    assert main(words) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["kind"], summary["unit"], summary["images"]) == ("volume", "mm", 8)
    assert main(["evaluate", str(work / "run"), str(work / "Köpfe 1"), "-o", str(work / "again")]) == 0
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
