"""A student of two modalities through the command line: predicted, scored, asked about what it never saw, extended."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from modalities import LEVELS, made_set, picture, remembering, saved

from segdistill.cli import main
from segdistill.data.labels import build_mapping, scan_values
from segdistill.data.rows import Row
from segdistill.data.several import Source
from segdistill.deploy.predictor import open_predictor
from segdistill.engine.evaluator import predicted_cases
from segdistill.formats import read_image


@pytest.fixture(scope="module")
def place(module_path):
    place = module_path
    saved(place / "student", remembering())
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


def test_a_volume_of_unknown_modality_is_scored_as_one(place):
    """Two bright slices and a dark one, which alone would be routed elsewhere."""
    folder = made_set(place / "V", ["bright", "dark", "bright"])
    names = ["bright0", "dark1", "bright2"]
    rows = [
        Row(folder / f"images/{n}.png", folder / f"masks/{n}.png", volume="v", slice=k) for k, n in enumerate(names)
    ]
    mapping = build_mapping(scan_values([row.mask for row in rows], None, lambda done, total: None, None), None)
    predictor = open_predictor(place / "student")
    for modality, number in (("", 1), ("dark", 0)):
        known = [replace(row, modality=modality, dataset="V") for row in rows]
        (case,) = predicted_cases(predictor, known, {"V": Source("V", folder, mapping)})
        expected = [predictor.predict(read_image(row.image), number).labels for row in rows]
        assert (case.prediction == np.stack(expected)).all()
        assert case.routing.argmax() == 1
    assert (expected[0] != predictor.predict(read_image(rows[0].image), 1).labels).any()


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


def test_a_file_for_a_modality_that_is_not_there(capsys):
    assert main(["export", "student", "--out", "x.onnx", "--modality", "mri"]) == 2
    assert "no modality 'mri'; give one of dark, bright" in capsys.readouterr().err


FAST = ["--precision", "32", "--cache", "cache", "--esp_medsam.batch-size", "2"]
SHORT = [*FAST, "--iterations", "2"]
LEARNING = [*FAST, "--iterations", "50", "--validate-every", "50", "--esp_medsam.learning-rate", "0.0003"]
LEARNING += ["--esp_medsam.final-factor", "1"]


@pytest.fixture(scope="module")
def grown(place):
    """A run that added a modality with a class of its own."""
    made_set(place / "S", ["striped"] * 12)
    words = ["extend", "student", "--data", "S", "--modality", "striped", "--out", "grown", "--classes", "back,stripe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main([*words, *LEARNING]) == 0
    return place / "grown"


def test_extend_is_a_run_and_leaves_the_others_as_they_were(place, grown):
    old, new = open_predictor(place / "student"), open_predictor(grown / "student")
    assert new.card.modalities == ("dark", "bright", "striped")
    assert new.card.classes == ("background", "foreground", "stripe")
    for kind in LEVELS:
        for m in (0, 1):
            before, after = old.predict(picture(kind, 40), m), new.predict(picture(kind, 40), m)
            assert before.probabilities.tobytes() == after.probabilities[:2].tobytes()
            assert before.labels.tobytes() == after.labels.tobytes()
            assert not after.probabilities[2].any()
    found = summary(grown)
    assert set(found["classes"]) == {"stripe", "foreground"}
    assert found["classes"]["foreground"]["images"] == 0  # nothing of S shows it
    assert list(found["routing"]["confusion"]) == ["striped"]
    report = (grown / "report.html").read_text(encoding="utf-8")
    assert "striped was added to dark, bright" in report


def test_masks_that_may_mean_an_old_or_the_new_class_need_a_name(place, grown, capsys):
    made_set(place / "old", ["dark"] * 2)
    words = ["evaluate", "grown", "old", "--modality", "dark", "--out", "old scores"]
    assert main(words) == 2
    assert "3 class names" in capsys.readouterr().err
    assert main([*words, "--classes", "background,foreground"]) == 0
    assert summary(place / "old scores")["classes"]["foreground"]["images"] == 2


def test_an_extended_student_finds_all_its_modalities(place, grown, capsys):
    made_set(place / "three", ["dark", "bright", "striped"], size=(64, 64))
    assert main(["predict", "grown", "three/images", "--out", "three masks"]) == 0
    with (place / "three masks" / "routing.csv").open(encoding="utf-8", newline="") as file:
        assert [row["modality"] for row in csv.DictReader(file)] == ["bright", "dark", "striped"]


def test_an_extension_goes_on_where_it_stopped(place, grown):
    assert main(["train", "--resume", "grown"]) == 0
    words = ["extend", "grown", "--data", "S", "--modality", "again", "--out", "twice", "--classes", "b,c"]
    assert main([*words, *SHORT]) == 0
    assert open_predictor(place / "twice" / "student").card.modalities == ("dark", "bright", "striped", "again")


TWICE = ["--iterations", "8", "--esp_medsam.head_iterations", "9"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--modality", "dark"], "the student knows it already"),
        (["--modality", "new", "--size", "32"], "size"),
        (["--modality", "new", *TWICE], "give one: --iterations 9 in place of both"),
    ],
)
def test_what_cannot_be_added(place, capsys, words, match):
    made_set(place / f"N{len(match)}", ["striped"] * 6)
    assert main(["extend", "student", "--data", f"N{len(match)}", *words]) == 2
    assert match in capsys.readouterr().err


def test_classes_that_nobody_can_know_are_asked_for(place, grown, capsys):
    assert main(["extend", "grown", "--data", "S", "--modality", "more", "--out", "no"]) == 2
    assert "name the classes of the new masks" in capsys.readouterr().err
    assert not (place / "no" / "config.yaml").exists()


def test_a_plain_student_has_no_modalities_to_add_to(place, capsys):
    from segdistill.models.students import build_student

    saved(place / "plain", build_student("unet", classes=2), modalities=())
    assert main(["extend", "plain", "--data", "D", "--modality", "new"]) == 2
    assert "a unet has no modalities to add to" in capsys.readouterr().err


def test_a_run_of_two_modalities_from_folders_to_routing(place, capsys):
    """All four stages, the teacher's embeddings kept while they are needed, the classifier judged at the end."""
    made_set(place / "dark", ["dark"] * 9)
    made_set(place / "bright", ["bright"] * 9)
    words = ["train", "dark", "bright", "--method", "esp_medsam", "--esp_medsam.sam", "tiny", "--size", "32"]
    words += ["--esp_medsam.cached", "true", "--iterations", "8", *FAST, "--out", "joint"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "common: the teacher's embeddings of 14 images take" in shown
    assert not (place / "joint" / "embeddings").exists()
    found = summary(place / "joint")["routing"]
    assert set(found["confusion"]) == {"bright", "dark"}
    assert found["n"] == 2
    assert "Which modality the student sees" in (place / "joint" / "report.html").read_text(encoding="utf-8")
    memory = open_predictor(place / "joint" / "student").student.network.memory
    assert (memory.seen > 0).all()  # to tell a modality that may come later from these
