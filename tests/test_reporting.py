"""What a run and an evaluation say in their report and on the student's card, from the command line."""

from __future__ import annotations

import csv
import json
import re

import pytest
from helpers import make_set

from segdistill.api.pretrained import pretrained
from segdistill.cli import main
from segdistill.methods.esp_medsam import ESPMedSAMConfig
from segdistill.methods.kdas import KDASConfig
from segdistill.methods.knowsam import KnowSAMConfig
from segdistill.methods.supervised import SupervisedConfig

FAST = ["--size", "32", "--iterations", "2", "--validate-every", "2", "--supervised.batch-size", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """24 disks of six patients, a run on half of the masks, and one on all of them beside it."""
    root = tmp_path_factory.mktemp("größe 1")
    data = make_set(root / "my disks", count=24)
    with (data / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask", "patient", "modality"])
        writer.writerows((f"images/{i:03d}.png", f"masks/{i:03d}.png", f"p{i // 4}", "endoscopy") for i in range(24))
    words = ["train", str(data), "--cache", str(root / "cache"), *FAST, "--test", "12", "--val", "4"]
    assert main([*words, "--out", str(root / "half"), "--labelled", "50%"]) == 0
    assert main([*words, "--out", str(root / "all"), "--baseline", str(root / "half")]) == 0
    return root


def html(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_is_compared_with_its_baseline(place):
    assert 'id="baseline"' not in html(place / "half")
    text = html(place / "all")
    assert 'id="baseline"' in text
    assert "supervised (labelled None) against supervised (labelled 50%), Dice of foreground" in text
    config = (place / "all" / "config.yaml").read_text(encoding="utf-8")
    assert str((place / "half").resolve()) in config.replace("\\\\", "\\")


def test_links_lead_from_the_report_to_the_images(place):
    found = re.findall(r'<a href="(\.\.[^"]*)">([^<]*)</a>', html(place / "all"))
    assert len(found) >= 10
    for link, name in found:
        assert link == f"../my%20disks/{name}"
        assert (place / "my disks" / name).is_file()


def test_patients_sizes_and_calibration_are_in_the_report(place):
    text = html(place / "all")
    for section in ("sizes", "patients", "calibration", "cases"):
        assert f'<section id="{section}">' in text
    summary = json.loads((place / "all" / "summary.json").read_text(encoding="utf-8"))
    pixels = sum(row["count"] for row in summary["calibration"])
    assert pixels == summary["images"] * 64 * 64
    gap = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in summary["calibration"])
    assert summary["ece"] == pytest.approx(gap / pixels)
    assert text.count("Uncertainty of ") == 9


def test_evaluate_takes_a_baseline(place, capsys):
    words = ["evaluate", str(place / "all"), str(place / "my disks"), "--split", "all"]
    assert main([*words, "--out", str(place / "scores"), "--baseline", str(place / "half")]) == 0
    text = html(place / "scores")
    assert "scores against supervised" in text
    assert "12 images are in common, of 12 of the baseline and 24 of the other" in text


def test_a_baseline_of_other_images_is_told_of_not_fatal(place, capsys):
    other = make_set(place / "others", count=6, seed=5)
    (other / "images" / "000.png").rename(other / "images" / "x.png")
    (other / "masks" / "000.png").rename(other / "masks" / "x.png")
    for name in ("images", "masks"):
        for number in range(1, 6):
            (other / name / f"{number:03d}.png").rename(other / name / f"y{number}.png")
    words = ["evaluate", str(place / "all"), str(other), "--out", str(place / "scores 2")]
    assert main([*words, "--baseline", str(place / "half")]) == 0
    assert "not compared with the baseline" in " ".join(capsys.readouterr().out.split())
    assert "no image and class in common" in html(place / "scores 2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "all", "my disks", "--baseline", "half"], "give another folder with --out"),
        (["evaluate", "all", "my disks", "--baseline", "half", "--out", "half"], "give another folder with --out"),
        (["evaluate", "all", "my disks", "--baseline", "my disks", "--out", "x"], "no scores.csv"),
        (["evaluate", "my disks/masks", "my disks", "--baseline", "half", "--out", "x"], "use segdistill compare"),
        (["train", "my disks", "--out", "x", "--baseline", "my disks"], "no scores.csv"),
        (["train", "my disks", "--out", "x", "--baseline", "half", "--seed", "3"], "of seed 0"),
    ],
)
def test_a_baseline_that_cannot_be_is_one_line_before_anything_is_done(place, monkeypatch, capsys, words, said):
    monkeypatch.chdir(place)
    before = (place / "half" / "scores.csv").read_bytes()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (place / "x").exists()
    assert (place / "half" / "scores.csv").read_bytes() == before


def test_the_card_says_what_the_student_comes_from(place):
    text = (place / "half" / "student" / "README.md").read_text(encoding="utf-8")
    card = json.loads((place / "half" / "student" / "student.json").read_text(encoding="utf-8"))
    for heading in ("Intended use", "Limits", "Licences", "Data", "Scores", "Use"):
        assert f"\n## {heading}\n" in text
    assert "Trained on my disks" in text
    assert f"`{card['data_hash']}`" in text
    assert [row["split"] for row in card["data"]["splits"]] == ["train", "val", "test"]
    assert "| split | images | labelled | patients |" in text
    assert "| test | 12 | 12 | 3 |" in text
    assert "images of the test split; mean (95 % interval)" in text
    assert "Small set" in text
    assert "Every scored image shows foreground" in text
    assert "It learned from 4 masks" in text
    assert "Teacher or other pretrained weights: none." in text
    assert "modality) is not known" not in text
    assert "p0" not in text  # patients are nobody's business
    assert str(place) not in text


def test_whose_weights_a_run_stands_on(place):
    assert pretrained(SupervisedConfig()) == {}
    assert pretrained(KnowSAMConfig()) == {"teacher": "facebook/sam-vit-base: Apache-2.0"}
    assert pretrained(KnowSAMConfig(teacher="tiny")) == {}
    assert pretrained(ESPMedSAMConfig(sam="wanglab/medsam-vit-base")) == {
        "teacher": "wanglab/medsam-vit-base: Apache-2.0"
    }
    assert pretrained(KDASConfig(backbone_weights="hub")) == {"pretrained backbone": "OpenGVLab/pvt_v2: Apache-2.0"}
    ours = pretrained(KDASConfig(teacher=str(place / "half")))
    assert ours == {"teacher": "half: not stated: the licences of the data and of any pretrained weights apply"}
    assert pretrained(KDASConfig(teacher=str(place / "half"), distil="none")) == {}
    file = place / "some.pth"
    file.write_bytes(b"x")
    assert pretrained(KnowSAMConfig(teacher=str(file))) == {
        "teacher": "some.pth: licence not known here; that of its source applies"
    }


def test_classes_that_only_their_side_tells_apart_are_warned_of(tmp_path, capsys):
    make_set(tmp_path / "lungs", classes=3)
    words = ["train", str(tmp_path / "lungs"), "--iterations", "1", "--size", "32", "--threads", "1"]
    named = [*words, "--classes", "background,left lung,Right-lung"]
    main([*named, "--out", str(tmp_path / "mirrored")])
    assert "left lung, Right-lung: training images are mirrored" in " ".join(capsys.readouterr().out.split())
    main([*named, "--flips", "vertical", "--out", str(tmp_path / "not")])
    assert "mirrored" not in capsys.readouterr().out
