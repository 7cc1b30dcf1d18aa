"""A student of two modalities through the command line: predicted, scored, and asked about what it never saw."""

import csv
import json

import pytest
from modalities import made_set, saved

from segdistill.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("modalities")
    saved(place / "student")
    made_set(place / "D", ["dark"] * 3 + ["bright"])  # one that the classifier must get wrong
    made_set(place / "B", ["bright"] * 3)
    return place


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "250")


def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def dice(folder):
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        return [row["dice"] for row in csv.DictReader(file)]


def test_predict_says_what_it_is_unsure_of(place, capsys):
    made_set(place / "mixed", ["dark", "bright", "between"])
    assert main(["predict", "student", "mixed/images", "--out", "masks"]) == 0
    shown = capsys.readouterr().out
    assert "unsure: between2 was predicted as" in shown
    assert "unsure of the modality of 1 images" in shown
    assert main(["predict", "student", "mixed/images", "--out", "masks", "--modality", "dark"]) == 0
    assert "unsure" not in capsys.readouterr().out


def test_known_modalities_are_told_and_the_classifier_is_judged(place, capsys):
    words = ["--modality", "D=dark", "--modality", "B=bright"]
    assert main(["evaluate", "student", "D", "B", *words, "--out", "scores"]) == 0
    found = summary(place / "scores")["routing"]
    assert found["confusion"] == {"bright": {"dark": 0, "bright": 3}, "dark": {"dark": 3, "bright": 1}}
    assert found["accuracy"] == pytest.approx(6 / 7)
    assert found["unknown"] == []
    assert "finds the modality of 85.7% of 7 images" in capsys.readouterr().out
    report = (place / "scores" / "report.html").read_text(encoding="utf-8")
    assert "Which modality the student sees" in report
    assert "taken for bright" in report


def test_the_told_modality_decides_the_scores(place):
    """An unseen set of a known modality: its controllers, whatever the classifier thinks."""
    for name in ("dark", "bright"):
        assert main(["evaluate", "student", "B", "--modality", name, "--out", f"as {name}"]) == 0
    assert main(["evaluate", "student", "B", "--out", "untold"]) == 0
    assert dice(place / "as dark") != dice(place / "as bright")
    assert dice(place / "untold") == dice(place / "as bright")  # what the classifier chooses


def test_an_unknown_modality_goes_to_the_most_confident_controller(place, capsys):
    assert main(["evaluate", "student", "B", "--modality", "mri", "--out", "unknown"]) == 0
    found = summary(place / "unknown")["routing"]
    assert (found["accuracy"], found["unknown"]) == (None, ["mri"])
    assert found["confusion"] == {"mri": {"dark": 0, "bright": 3}}
    shown = capsys.readouterr().out
    assert "does not know the modality mri" in shown
    assert "bright 3; unsure of none" in shown
    assert "does not know the modality mri" in (place / "unknown" / "report.html").read_text(encoding="utf-8")
