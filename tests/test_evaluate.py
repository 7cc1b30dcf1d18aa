"""What `evaluate` scores: which images, which mask belongs to which, and what the values in them mean."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import disk, make_set
from PIL import Image
from test_cli import FAST

from segdistill.api.data import load_sets
from segdistill.api.references import meanings, sources_of, values_in, with_saved_splits
from segdistill.api.runs import write_json
from segdistill.cli import main
from segdistill.data.findings import Named
from segdistill.data.labels import as_known, build_mapping, scan_values
from segdistill.data.manifest import load_manifest
from segdistill.data.rows import Row
from segdistill.data.several import Source, into_classes
from segdistill.data.splits import load_splits, save_splits
from segdistill.deploy.card import Card
from segdistill.engine.evaluator import told_modality
from segdistill.metrics.routing import summarise_routing
from segdistill.types import Known, UserError

GAPS = (0, 1, 3, 4)  # of background, a, b, c


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def scene(*values, size=32):
    """A label map with a disk of each value in a quarter of its own."""
    labels = np.zeros((size, size), int)
    for value, centre in zip(values, ((8, 8), (8, 24), (24, 8)), strict=False):
        labels = np.where(disk((size, size), centre, 5) > 0, value, labels)
    return labels


def references(folder, *maps):
    for i, labels in enumerate(maps):
        save(folder / "masks" / f"{i}.png", labels)
        save(folder / "images" / f"{i}.png", np.full((*labels.shape, 3), 90))
    return folder


def dice(folder, *more):
    """Mean Dice of each class, of masks in `predicted`."""
    assert main(["evaluate", "predicted", str(folder), "--out", "scores", *more]) == 0
    summary = json.loads(Path("scores/summary.json").read_text(encoding="utf-8"))
    return {name: row["dice"]["mean"] for name, row in summary["classes"].items()}


def card(known):
    return Card("unet", {}, "supervised", known.classes, ((0, 0, 0),) * 4, (32, 32), "", data=known_data(known))


def known_data(known):
    return {"mask values": [json.loads(json.dumps(known.to_json()))]}


@pytest.fixture
def gaps(tmp_path):
    return references(tmp_path / "data", scene(1, 3, 4), scene(1, 3))


NAMES = ("--classes", "background,a,b,c")


def test_a_class_that_is_never_predicted_changes_no_other_class(gaps, tmp_path):
    save(tmp_path / "predicted" / "0.png", scene(1, 3))
    save(tmp_path / "predicted" / "1.png", scene(1, 4))
    assert dice(gaps, *NAMES) == {"a": 1, "b": 0.5, "c": 0}


def test_values_that_may_mean_two_things_stop(gaps, tmp_path, capsys):
    for i in range(2):
        save(tmp_path / "predicted" / f"{i}.png", scene(1, 3))  # 3 is b there, and c as an index
    assert main(["evaluate", "predicted", str(gaps), *NAMES]) == 2
    assert "renumber the references" in capsys.readouterr().err


def test_what_values_mean_is_asked_of_all_references(tmp_path):
    """The test image alone has 2 and 3, which by themselves would be classes 1 and 2."""
    data = references(tmp_path / "data", scene(1, 2, 3), scene(2, 3))
    rows = "image,mask,split\nimages/0.png,masks/0.png,train\nimages/1.png,masks/1.png,test\n"
    (data / "manifest.csv").write_text(rows, encoding="utf-8")
    for i in range(2):
        save(tmp_path / "predicted" / f"{i}.png", np.where(scene(0, 1), 1, scene(2)))  # no 3, and one false 1
    found = dice(data)
    assert (found["class_2"], found["class_3"]) == (1, 0)


def test_two_masks_of_one_name_stop(gaps, tmp_path, capsys):
    for name in ("0.png", "0.tif", "1.png"):
        save(tmp_path / "predicted" / name, scene(1, 3))
    assert main(["evaluate", "predicted", str(gaps), *NAMES]) == 2
    assert "two masks for 0, 0.png and 0.tif; remove one" in " ".join(capsys.readouterr().err.split())


def test_masks_of_a_manifest_are_of_the_data_set_that_runs_name(tmp_path):
    data = references(tmp_path / "data", scene(1))
    save(tmp_path / "predicted" / "0.png", scene(1))
    (data / "frames.csv").write_text("image,mask\nimages/0.png,masks/0.png\n", encoding="utf-8")
    dice(data / "frames.csv")
    with open("scores/scores.csv", encoding="utf-8") as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == {load_manifest(data / "frames.csv").name}


def test_class_indices_beside_references_with_gaps(gaps, tmp_path):
    save(tmp_path / "predicted" / "0.png", scene(1, 2, 3))
    save(tmp_path / "predicted" / "1.png", scene(1, 2))
    assert dice(gaps, *NAMES) == {"a": 1, "b": 1, "c": 1}


def test_a_threshold_is_for_grey_levels_not_for_class_indices(tmp_path):
    grey = references(tmp_path / "data", scene(200) + np.arange(32), scene(180) + np.arange(32))
    for folder, value in (("predicted", 1), ("also", 255)):
        for i in range(2):
            save(tmp_path / folder / f"{i}.png", scene(value))
    words = ("--classes", "background,polyp", "--threshold", "127")
    assert dice(grey, *words) == {"polyp": 1}
    (tmp_path / "predicted").rename(tmp_path / "indices")
    (tmp_path / "also").rename(tmp_path / "predicted")
    assert dice(grey, *words) == {"polyp": 1}


def test_masks_are_matched_by_their_folders_too(tmp_path, capsys):
    for patient, value in (("p1", 1), ("p2", 0)):
        for kind, picture in (("images", np.full((32, 32, 3), 90)), ("masks", scene(value))):
            save(tmp_path / "data" / kind / patient / "001.png", picture)
        save(tmp_path / "predicted" / patient / "001.png", scene(value))
    assert dice(tmp_path / "data", "--classes", "background,a") == {"a": 1}
    save(tmp_path / "flat" / "001.png", scene(1))
    assert main(["evaluate", "flat", "data", "--classes", "background,a"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "its mask 001 would be scored for" in said


def test_later_masks_mean_what_they_meant_in_training(gaps, tmp_path, capsys):
    known = build_mapping(scan_values(sorted((gaps / "masks").iterdir())), ["background", "a", "b", "c"])
    later = load_manifest(references(tmp_path / "later", scene(1, 3)))
    source = sources_of([later], card(known), {"later": Named(later.root, None, None)})["later"]
    assert source.mapping is not None
    assert source.mapping.indices == (0, 1, 2)
    assert "3 -> 2 b" in capsys.readouterr().out


def test_meanings_that_differ_are_none(gaps):
    found = scan_values(sorted((gaps / "masks").iterdir()))
    one, other = (build_mapping(found, names.split()) for names in ("bg a b c", "bg x y z"))
    assert as_known(found, [one, one]) == one
    assert as_known(found, [one, other]) is None
    assert as_known(found, []) is None


def test_a_run_is_scored_on_the_test_images_that_it_drew(tmp_path, capsys):
    data = make_set(tmp_path / "disks ä", count=16)
    words = ["train", str(data), "--out", "run", "--cache", "cache", *FAST, "--classes", "background,disk"]
    assert main(words) == 0
    with open("run/data/splits.csv", encoding="utf-8") as file:
        test = {row["image"] for row in csv.DictReader(file) if row["split"] == "test"}
    for more, scored, count in (([], "test", len(test)), (["--split", "train"], "train", 12)):
        assert main(["evaluate", "run", "disks ä", *more, "--out", scored]) == 0
        assert f"split {scored}" in " ".join(capsys.readouterr().out.split())
        with open(f"{scored}/scores.csv", encoding="utf-8") as file:
            found = {row["image"] for row in csv.DictReader(file)}
        assert len(found) == count
        assert (found == test) == (scored == "test")
    assert main(["compare", "train", "run"]) == 2  # no image in common
    assert main(["evaluate", "run/student_last", "disks ä", "--out", "last"]) == 0  # what lies in a run is of the run
    with open("last/scores.csv", encoding="utf-8") as file:
        assert {row["image"] for row in csv.DictReader(file)} == test
    assert main(["evaluate", "run/student", "disks ä", "--split", "all", "--out", "all"]) == 0
    assert main(["compare", "run", "all"]) == 0
    assert "Not all scores are of test images" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_cannot_be_is_said_before_anything_is_scored(gaps, tmp_path, capsys):
    save(tmp_path / "predicted" / "0.png", scene(1, 3, 4))
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert main(["evaluate", "predicted", str(gaps), "--out", "file/below"]) == 2
    assert "file is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_an_extended_student_keeps_what_values_meant(tmp_path):
    def mapping(folder, names):
        data = references(tmp_path / folder, scene(255), scene(255))
        return build_mapping(scan_values(sorted((data / "masks").iterdir())), names)

    old, classes = mapping("old", ["background", "polyp"]), ("background", "polyp", "stripe")
    new = into_classes(mapping("new", ["background", "stripe"]), classes)
    sources = {"new": Source("new", tmp_path, new)}
    saved = json.loads(json.dumps(old.to_json()))
    known = Known(old.classes, ("", ""), (32, 32), "squash", 0, (saved,))
    before, own = meanings(sources, classes, known)
    assert (before.indices, before.classes, before.annotated) == ((0, 1), classes, (0, 1))
    assert own == new
    assert as_known(old.found, [before, own]) is None  # 255 was polyp, and is stripe
    assert meanings(sources, classes, None) == [new]
    assert meanings(sources, classes, known._replace(meanings=())) == []  # who knows what 255 meant to it


def test_a_class_that_a_set_does_not_annotate_stays_so_among_more_classes(gaps):
    found = scan_values(sorted((gaps / "masks").iterdir()))
    part = into_classes(build_mapping(found, ["bg", "a", "c", "d"]), ("bg", "a", "b", "c", "d"))
    longer = into_classes(part, (*part.classes, "e"))
    assert longer.marks() == (True, True, False, True, True, False)
    assert longer.indices == part.indices


def test_names_are_shown_as_they_are_and_counts_in_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("segdistill.api.terminal.console.width", 80)
    data = references(tmp_path / "data [old]", scene(1))
    save(tmp_path / "predicted" / "0.png", scene(1))
    assert main(["evaluate", "predicted", str(data), "--classes", "background,polyp [/b]"]) == 0
    said = capsys.readouterr().out
    assert "data [old], split all, original resolution\n" in said
    assert "polyp [/b]" in said
    assert "1 image. With 1 image, there is no interval and no claim to make." in " ".join(said.split())
    assert "Patients are unknown" not in said


def run_of(folder, classes, **sets):
    """A run's record of data sets: name -> (root, mapping, rows)."""
    several = len(sets) > 1
    facts = {"name": ", ".join(sets)} | (
        {"sets": {name: str(root) for name, (root, _, _) in sets.items()}}
        if several
        else {"root": str(next(iter(sets.values()))[0])}
    )
    for name, (root, mapping, rows) in sets.items():
        place = folder / "data" / "sets" / name if several else folder / "data"
        place.mkdir(parents=True)
        save_splits(place / "splits.csv", rows, root=root)
        write_json(place / "mapping.json", into_classes(mapping, classes).to_json())
    write_json(folder / "data" / "data.json", facts)
    write_json(folder / "run.json", {})
    return folder


def joint(tmp_path):
    """Two sets whose value 255 is polyp in the one and lung in the other, their run, its card."""
    classes, sets, known = ("background", "polyp", "lung"), {}, []
    for name, lesion in (("A", "polyp"), ("B", "lung")):
        data = load_manifest(references(tmp_path / name, scene(255), scene(255)))
        mapping = build_mapping(values_in([row.mask for row in data.rows], None), ["background", lesion])
        sets[name] = (data.root, mapping, [replace(row, split="train") for row in data.rows])
        known.append(into_classes(mapping, classes).to_json())
    run = run_of(tmp_path / "run", classes, **sets)
    return run, Card("unet", {}, "supervised", classes, ((0, 0, 0),) * 3, (32, 32), "", data={"mask values": known})


def meant(card, run, *names, threshold=None):
    sets = load_sets([Path(name) for name in names])
    said = {one.name: Named(one.root, None, threshold) for one in sets}
    return {name: source.mapping for name, source in sources_of(sets, card, said, run).items()}


def test_each_set_of_a_joint_run_means_what_it_meant_to_it(tmp_path):
    run, card = joint(tmp_path)
    found = meant(card, run, "B", "A")
    assert {name: (one.indices, one.marks()) for name, one in found.items()} == {
        "A": ((0, 1), (True, True, False)),
        "B": ((0, 2), (True, False, True)),
    }
    longer = replace(card, classes=(*card.classes, "liver"), colours=((0, 0, 0),) * 4)  # as an addition writes it
    assert meant(longer, run / "student", "B")["B"].indices == (0, 2)


def test_values_that_meant_two_things_in_training_are_not_guessed(tmp_path):
    run, card = joint(tmp_path)
    references(tmp_path / "later", scene(255))
    for around in (run, None):
        with pytest.raises(UserError, match="meant background, polyp or background, lung in different data sets"):
            meant(card, around, "later")


def test_two_lists_in_one_folder_both_keep_the_splits_that_a_run_drew(tmp_path):
    data = references(tmp_path / "both", *[scene(255)] * 4)
    for name, numbers in (("a", (0, 1)), ("b", (2, 3))):
        lines = [f"images/{i}.png,masks/{i}.png" for i in numbers]
        (data / f"{name}.csv").write_text("image,mask\n" + "\n".join(lines), encoding="utf-8")
    sets = load_sets([data / "a.csv", data / "b.csv"])
    mapping = build_mapping(values_in([row.mask for row in sets[0].rows], None), ["background", "polyp"])
    parts = {one.name: [replace(one.rows[0], split="train"), replace(one.rows[1], split="test")] for one in sets}
    run = run_of(tmp_path / "run", mapping.classes, **{name: (data, mapping, part) for name, part in parts.items()})
    for one in (*with_saved_splits(run, sets), *with_saved_splits(run, sets[:1])):
        assert [row.split for row in one.rows] == ["train", "test"]


def test_a_runs_own_images_have_the_modality_that_it_was_told(tmp_path):
    run, _ = joint(tmp_path)
    for name in "AB":
        place = run / "data" / "sets" / name / "splits.csv"
        rows = [replace(row, modality=f"made of {name}") for row in load_splits(place, root=tmp_path / name)]
        save_splits(place, rows, root=tmp_path / name)
    for names, said, expected in (("A", None, ["made of A"]), ("AB", "A=skin", ["skin", "made of B"])):
        sets = with_saved_splits(run, load_sets([tmp_path / name for name in names], said), said)
        assert [{row.modality for row in one.rows} for one in sets] == [{name} for name in expected]


def test_a_row_without_a_modality_is_not_of_the_unnamed_one(tmp_path):
    """A student of unnamed images that got one more modality: whose images these are nobody has said."""
    student = SimpleNamespace(card=SimpleNamespace(modalities=("", "mri")), routes=True)
    told = [told_modality(student, Row(tmp_path, None, modality=name)) for name in ("", "mri", "xray")]
    assert told == [None, 1, None]
    block = summarise_routing(["", "mri"], [[0.9, 0.1], [0.2, 0.8]], ("", "mri"), 0.8)
    assert (block["n"], block["unknown"], block["per_modality"]) == (1, [""], {"mri": 1})


def test_grey_levels_are_parted_where_the_training_parted_them(tmp_path):
    """A later set, which the run never saw, without a word of --threshold: export has no such option."""
    run, card = joint(tmp_path)
    data = load_manifest(references(tmp_path / "grey", scene(200) + np.arange(32), scene(180) + np.arange(32)))
    known = build_mapping(values_in([row.mask for row in data.rows], 127), ["background", "polyp"])
    parted = Card(
        "unet", {}, "supervised", known.classes, ((0, 0, 0),) * 2, (32, 32), "", data={"mask values": [known.to_json()]}
    )
    assert meant(parted, None, "grey")["grey"].found.threshold == 127
    assert meant(parted, None, "grey", threshold=190)["grey"].found.threshold == 190
    assert meant(parted, None, "A")["A"].found.threshold is None  # 0 and 255 need none
    with pytest.raises(UserError, match="pass --threshold 127"):
        meant(card, run, "grey")


def test_a_runs_own_masks_keep_its_threshold(tmp_path):
    data = load_manifest(references(tmp_path / "grey", scene(200) + np.arange(32), scene(180) + np.arange(32)))
    known = build_mapping(values_in([row.mask for row in data.rows], 99), ["background", "polyp"])
    run = run_of(tmp_path / "run", known.classes, grey=(data.root, known, list(data.rows)))
    card = Card("unet", {}, "supervised", known.classes, ((0, 0, 0),) * 2, (32, 32), "")
    assert meant(card, run, "grey")["grey"].found.threshold == 99
    assert meant(card, run, "grey", threshold=99)["grey"] == known
    assert meant(card, run, "grey", threshold=190)["grey"].found.threshold == 190


def test_options_say_of_masks_what_they_say_of_a_students_set(tmp_path):
    """By the set's name too: what is right beside a student is right beside another tool's masks."""
    data = references(tmp_path / "data", scene(200) + np.arange(32))
    save(tmp_path / "predicted" / "0.png", scene(1))
    assert dice(data, "--classes", "data=bg,polyp", "--threshold", "data=127", "--modality", "colonoscopy") == {
        "polyp": 1
    }
    with open("scores/scores.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["dataset"], row["modality"]) == ("data", "colonoscopy")
    plain = ["evaluate", "predicted", str(data / "masks"), "--threshold", "masks=127", "--classes", "masks=bg,polyp"]
    assert main(plain) == 0
    assert main([*plain, "--classes", "other=bg,polyp"]) == 2


def test_a_run_that_has_not_ended_is_no_folder_of_masks(tmp_path, capsys):
    run, _ = joint(tmp_path)
    (run / "config.yaml").write_text("method: supervised\n", encoding="utf-8")
    assert main(["evaluate", str(run), str(tmp_path / "A")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "its training has not ended; go on with segdistill train --resume" in said
