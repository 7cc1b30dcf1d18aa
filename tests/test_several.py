"""Several data sets through the command line: train, resume, evaluate, check, compare."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import make_set, make_volumes
from PIL import Image

from segdistill.cli import main
from segdistill.deploy.artefact import load_student, save_student
from segdistill.metrics.polyp import POLYP_METRICS, POLYP_SCORES, polyp_scores
from segdistill.models.students import build_student

FAST = ["--size", "32", "--iterations", "4", "--validate-every", "2", "--precision", "32", "--cache", "cache"]
SMALL = [*FAST, "--supervised.batch-size", "4"]


def read_scores(folder):
    return list(csv.DictReader((folder / "scores.csv").open(encoding="utf-8")))


def read_rows(folder, name):
    return list(csv.DictReader((folder / "data" / "sets" / name / "splits.csv").open(encoding="utf-8")))


@pytest.fixture(scope="module")
def place(module_path):
    """A (12 images), B with a space (9), C (three values), U (no masks), and a run on A, B and U."""
    place = module_path
    make_set(place / "A", count=12, size=40, seed=1)
    make_set(place / "B ü", count=9, size=48, seed=2)
    make_set(place / "C", count=9, size=48, classes=3, seed=3)
    make_set(place / "U", count=4, size=40, unlabelled=4, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["train", "A", "B ü", "U", "--out", "joint", "--modality", "A=dermoscopy", "--modality", "U=xray"]
        assert main([*words, *SMALL, "--labelled", "A=50%", "--labelled", "B ü=3"]) == 0
    return place


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")


def test_one_run_of_several_sets(place):
    run = place / "joint"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["datasets"]) == {"A", "B ü"}
    assert set(summary["modalities"]) == {"dermoscopy", "B ü"}  # a set of unknown modality is its own
    assert summary["macro"]["dice"]["n"] == 2
    assert {row["dataset"] for row in read_scores(run)} == {"A", "B ü"}
    assert {row["class"] for row in read_scores(run)} == {"foreground"}
    assert {row["modality"] for row in read_rows(run, "U")} == {"xray"}
    assert {row["split"] for row in read_rows(run, "U")} == {"train"}
    card = json.loads((run / "student" / "student.json").read_text(encoding="utf-8"))
    assert card["modalities"] == ["B ü", "dermoscopy", "xray"]
    assert not (run / "data" / "sets" / "U" / "mapping.json").exists()


def test_each_set_has_its_budget(place):
    for name, labelled in (("A", 4), ("B ü", 3)):
        train = [row for row in read_rows(place / "joint", name) if row["split"] == "train"]
        assert sum(bool(row["mask"]) for row in train) == labelled


def test_the_report_shows_sets_and_modalities(place):
    text = (place / "joint" / "report.html").read_text(encoding="utf-8")
    for words in ("mean of modalities", "dermoscopy", "With each of 2 modalities", "A: images/", "Data set"):
        assert words in text
    assert "no labelled test image in U" in text


def test_a_set_is_split_as_if_it_were_alone(place):
    assert main(["train", "A", "--out", "alone", *SMALL]) == 0
    alone = {row["image"] for row in read_scores(place / "alone")}
    assert alone == {row["image"] for row in read_scores(place / "joint") if row["dataset"] == "A"}
    assert main(["evaluate", "joint", "A", "--out", "A of joint", "--split", "all"]) == 0
    assert main(["compare", "alone", "A of joint"]) == 0  # so a specialist and the joint student can be compared


def test_config_and_resume_repeat_the_run(place):
    assert main(["train", "--config", "joint/config.yaml", "--out", "again"]) == 0
    for name in ("log.jsonl", "scores.csv", "student/student.safetensors"):
        assert (place / "again" / name).read_bytes() == (place / "joint" / name).read_bytes()
    (place / "again" / "report.html").unlink()
    assert main(["train", "--resume", "again"]) == 0
    assert (place / "again" / "scores.csv").read_bytes() == (place / "joint" / "scores.csv").read_bytes()


def test_named_classes_join(place, capsys):
    names = ["--classes", "A=background,polyp", "--classes", "C=background,lung,polyp"]
    assert main(["train", "A", "C", "--out", "named", *SMALL, *names, "--balance", "1"]) == 0
    assert "1 -> 2 lung" in capsys.readouterr().out
    assert load_student(place / "named" / "student").card.classes == ("background", "polyp", "lung")
    classes = {(row["dataset"], row["class"]) for row in read_scores(place / "named")}
    assert classes == {("A", "polyp"), ("C", "lung"), ("C", "polyp")}
    words = ["evaluate", "named", "A", "C", "B ü", "--out", "named scores", "--split", "all"]
    assert main([*words, *names, "--classes", "B ü=background,lung"]) == 0
    scored = {(row["dataset"], row["class"]) for row in read_scores(place / "named scores")}
    assert scored == classes | {("B ü", "lung")}


def test_a_recipe_may_name_the_sets(place, tmp_path):
    text = "data: [A, U]\nmodality: A=dermoscopy\nsize: 32\niterations: 2\nprecision: '32'\ncache: cache\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), "--out", "recipe"]) == 0
    assert {row["modality"] for row in read_rows(place / "recipe", "A")} == {"dermoscopy"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "C"], "--classes C=background,class_1,class_2"),
        (["A", "B ü", "--classes", "A=background,polyp"], "says nothing of B ü"),
        (["A", "B ü", "--modality", "Kvsir=colonoscopy"], "no data set is named Kvsir; there are A, B ü"),
        (["A", "A"], "two data sets named A"),
        (["A", "B ü", "--labelled", "B ü=90"], "B ü: labelled '90'"),
        (["A", "B ü", "--threshold", "A=grey"], "needs a whole number"),
        (["A", "B ü", "--balance", "2"], "from 0"),
        (["U", "U2"], "no image has a mask"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(place, words, said, capsys):
    if "U2" in words and not (place / "U2").exists():
        make_set(place / "U2", count=3, unlabelled=3)
    assert main(["train", *words, "--out", "never", *FAST]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (place / "never" / "config.yaml").exists()


def test_evaluate_says_which_class_it_does_not_know(capsys):
    assert main(["evaluate", "joint", "A", "B ü", "--classes", "B ü=background,liver"]) == 2
    assert "B ü: class liver is none of foreground" in capsys.readouterr().err
    assert main(["evaluate", "A/masks", "A", "B ü"]) == 2
    assert "one data set" in capsys.readouterr().err


def test_polyp_metrics_of_all_sets_in_one_table(place, capsys):
    """Each value again from what predict writes: the map at the original size of the mask."""
    assert main(["evaluate", "joint", "A", "B ü", "--split", "all", "--metrics", "polyp", "--out", "five"]) == 0
    printed = capsys.readouterr().out
    assert "as polyp papers score" in printed
    summary = json.loads((place / "five" / "summary.json").read_text(encoding="utf-8"))
    rows = read_scores(place / "five")
    assert main(["predict", "joint", "A/images", "-o", "maps", "--probabilities", "true"]) == 0
    found = {row["image"]: row for row in rows if row["dataset"] == "A"}
    assert len(found) == 12
    for name, row in found.items():
        with np.load(place / "maps" / f"{name.removeprefix('images/').removesuffix('.png')}_prob.npz") as stored:
            prob = stored["probabilities"][1].astype(np.float64)
        reference = np.array(Image.open(place / "A" / name.replace("images", "masks"))) > 0
        assert prob.shape == reference.shape == (40, 40)  # trained at 32
        scores = polyp_scores(prob, reference)
        for score in POLYP_SCORES:
            assert float(row[score]) == pytest.approx(scores[score], abs=0.02)  # stored as float16, then stretched
    parts = [summary["polyp"], *(part["polyp"] for part in summary["datasets"].values())]
    for part, count in zip(parts, (21, 12, 9), strict=True):
        assert list(part) == list(POLYP_METRICS)
        assert {value["n"] for value in part.values()} == {count}
    mean = np.mean([float(row["mdice_256"]) for row in found.values()])
    assert summary["datasets"]["A"]["polyp"]["mdice_256"]["mean"] == pytest.approx(mean)
    assert f"{mean:.3f}" in printed
    text = (place / "five" / "report.html").read_text(encoding="utf-8")
    assert "As polyp papers score" in text
    assert f"{mean:.3f}" in text


def test_polyp_metrics_where_they_cannot_be(place, tmp_path, capsys):
    assert main(["evaluate", "A/masks", "A", "--metrics", "polyp"]) == 2
    assert "needs probabilities, and A/masks holds masks" in capsys.readouterr().err.replace("\\", "/")
    card = load_student(place / "joint" / "student").card
    names, colours = ("background", "lung", "polyp"), (*card.colours, (0, 0, 0))
    card = replace(card, arguments={"classes": 3}, classes=names, colours=colours)
    save_student(tmp_path / "three", build_student("unet", classes=3), card)
    assert main(["evaluate", str(tmp_path / "three"), "C", "--metrics", "polyp"]) == 2
    assert "one foreground class, not of lung, polyp" in capsys.readouterr().err
    make_volumes(tmp_path / "V", count=2)
    assert main(["evaluate", "joint", str(tmp_path / "V"), "--metrics", "polyp"]) == 2
    assert "not for volumes" in capsys.readouterr().err
    assert main(["evaluate", "joint", "A", "--metrics", "plop"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def with_splits(folder, seed, splits):
    make_set(folder, count=len(splits), size=40, seed=seed)
    lines = [f"images/{i:03d}.png,masks/{i:03d}.png,{split},{i}" for i, split in enumerate(splits)]
    (folder / "manifest.csv").write_text("image,mask,split,patient\n" + "\n".join(lines), encoding="utf-8")
    return folder


def test_copies_are_found_across_sets(tmp_path, capsys):
    """The patient 1 of one set is not that of the other; a picture in both is a leak."""
    one = with_splits(tmp_path / "one", 7, ["train", "train", "train", "val"])
    two = with_splits(tmp_path / "two", 8, ["test"] * 3)
    assert main(["check", str(one), str(two)]) == 0
    assert "7, 7 with a mask" in capsys.readouterr().out
    Image.open(one / "images" / "002.png").save(two / "images" / "001.png")
    assert main(["check", str(one), str(two), "--json", "found.json"]) == 1
    assert "two: images/001.png (test) = one: images/002.png (train)" in capsys.readouterr().out
    assert main(["train", str(one), str(two), "--out", "leaky", *FAST]) == 2
    assert "equal in every pixel" in capsys.readouterr().err


def test_masks_of_each_set_are_read_by_its_own_values(tmp_path):
    """JPEG-like greys in one set need a threshold; the other's values are what they are."""
    grey = make_set(tmp_path / "grey", count=6, size=40, seed=5)
    for path in (grey / "masks").iterdir():
        mask = np.array(Image.open(path)).astype(int)
        mask[0, :40] = np.where(mask[0] > 127, 250, np.arange(40))
        Image.fromarray(mask.astype(np.uint8)).save(path)
    words = ["train", str(grey), "A", "--out", str(tmp_path / "run"), *SMALL]
    assert main(words) == 2
    assert main([*words, "--threshold", "grey=127"]) == 0
