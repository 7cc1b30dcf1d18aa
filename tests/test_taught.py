"""A teacher that was told the test images passes them on: refused, or said."""

import csv
from types import SimpleNamespace

import pytest
from helpers import make_set
from test_cli import FAST

from segdistill.api.data import saved_sets
from segdistill.api.taught import refuse_leaks, told_caveats
from segdistill.cli import main
from segdistill.types import UserError

WORDS = [*FAST, "--classes", "background,disk"]


@pytest.fixture(scope="module")
def place(module_path):
    """A run of seed 1, and one of seed 0 that has a third of its masks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(module_path)
        make_set(module_path / "disks ä", count=16)
        for name, more in (("teacher", ["--seed", "1"]), ("few", ["--labelled", "4"])):
            assert main(["train", "disks ä", "--out", name, "--cache", "cache", *WORDS, *more]) == 0
    return module_path


def rows_of(run):
    return [row for part in saved_sets(run)[1] for row in part]


def images(run, *splits):
    with (run / "data" / "splits.csv").open(encoding="utf-8") as file:
        return {row["image"] for row in csv.DictReader(file) if row["split"] in splits}


def test_a_teacher_of_other_splits_is_refused(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    told = {split: len(images(place / "few", split) & images(place / "teacher", "train")) for split in ("test", "val")}
    assert told["test"]
    words = ["--method", "kdas", "--kdas.teacher", "teacher", "--cache", "cache", "--size", "32"]
    assert main(["train", "disks ä", "--out", "taught", *words]) == 2
    assert f"the masks of {told['test']} test images" in " ".join(capsys.readouterr().err.split())
    assert not (place / "taught").exists()
    said = " ".join(told_caveats(SimpleNamespace(teacher=str(place / "teacher")), rows_of(place / "few")))
    assert f"{told['test']} test images: scores are too good" in said


def test_one_of_the_same_splits_is_not_but_its_labels_are_told(place):
    for path in (place / "few", place / "few" / "student", place / "few" / "student_last"):
        refuse_leaks(SimpleNamespace(teacher=str(path)), rows_of(place / "few"))
        assert list(told_caveats(SimpleNamespace(teacher=str(path)), rows_of(place / "few"))) == []
    hidden = len(images(place / "few", "train") & images(place / "teacher", "train")) - len(
        [row for row in rows_of(place / "few") if row.mask and row.split == "train" and in_training(row, place)]
    )
    said = list(told_caveats(SimpleNamespace(init=str(place / "teacher")), rows_of(place / "few")))
    assert f"{hidden} masks that are hidden from this student" in said[-1]


def in_training(row, place):
    return f"images/{row.image.name}" in images(place / "teacher", "train")


@pytest.mark.parametrize("settings", [{}, {"teacher": "tiny"}, {"teacher": None, "init": ""}])
def test_weights_that_are_no_run_are_none(settings, place):
    refuse_leaks(SimpleNamespace(**settings), rows_of(place / "few"))
    with pytest.raises(UserError):
        refuse_leaks(SimpleNamespace(teacher=str(place / "teacher")), rows_of(place / "few"))
