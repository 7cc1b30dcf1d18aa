"""Final scores against hand-sized cases, and the fast validation Dice against the final one."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import disk
from PIL import Image

from segdistill.data.labels import build_mapping, scan_values
from segdistill.data.rows import Row
from segdistill.data.several import Source, into_classes
from segdistill.deploy.predictor import Prediction
from segdistill.engine.evaluator import Case, evaluate_cases, extremes, predicted_cases, write_scores
from segdistill.engine.validation import dice_table
from segdistill.metrics.calibration import Calibration
from segdistill.metrics.scores import score_image
from segdistill.types import UserError

CLASSES = ("background", "polyp")


def case(name, prediction, reference, **other):
    from pathlib import Path

    return Case(name, Row(Path(name), Path(name), patient=other.pop("patient", "")), prediction, reference, **other)


def cases(count=9):
    """A reference disk and the same disk shifted by 0, 1, 2, ... pixels."""
    reference = disk((40, 40), (20, 14), 8)
    return [case(f"{i}.png", np.roll(reference, i, axis=1), reference) for i in range(count)]


def test_the_table_and_its_summary():
    result = evaluate_cases(cases(), classes=CLASSES)
    assert [row["image"] for row in result.scores] == [f"{i}.png" for i in range(9)]
    assert result.scores[0]["dice"] == 1
    assert result.scores[4]["class"] == "polyp"
    assert result.summary["mean"]["dice"]["mean"] == pytest.approx(np.mean([row["dice"] for row in result.scores]))
    assert result.summary["ece"] is None


def test_calibration_needs_probabilities():
    reference = disk((40, 40), (20, 14), 8)
    sure = np.stack([1 - reference, reference]).astype(np.float32)
    calibration = Calibration()
    calibration.update(sure, reference)
    made = [case("a", reference, reference, calibration=calibration, seconds=(0.25,))]
    summary = evaluate_cases(made, classes=CLASSES).summary
    assert summary["ece"] == pytest.approx(0)
    assert summary["ms_per_image"] == 250


def test_a_class_that_a_set_does_not_annotate_is_no_error_of_calibration(tmp_path):
    """A sure student finds the heart, and a lung that this set's masks show as background."""
    heart, lung = disk((32, 32), (8, 8), 5), disk((32, 32), (22, 22), 7)
    for name, pixels in (("image", np.full((32, 32, 3), 90)), ("mask", heart)):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    classes = ("background", "heart", "lung")
    found = scan_values([tmp_path / "mask.png"])
    source = Source("set", tmp_path, into_classes(build_mapping(found, ["background", "heart"]), classes))
    labels = (heart + 2 * lung).astype(np.uint8)
    probabilities = np.stack([labels == k for k in range(3)]).astype(np.float32)
    card = SimpleNamespace(classes=classes, modalities=(), neighbours=0)
    student = SimpleNamespace(
        card=card, routes=False, predict=lambda image, modality: Prediction(labels, probabilities)
    )
    row = Row(tmp_path / "image.png", tmp_path / "mask.png", dataset="set")
    (found_case,) = predicted_cases(student, [row], {"set": source})
    assert found_case.calibration.ece == 0


def test_a_size_that_does_not_fit_names_the_image():
    wrong = case("odd.png", np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))
    with pytest.raises(UserError, match=r"^odd\.png: "):
        evaluate_cases([wrong], classes=CLASSES)


def test_files(tmp_path):
    empty = np.zeros((8, 8), np.uint8)
    write_scores(tmp_path, evaluate_cases([*cases(), case("none", empty, empty)], classes=CLASSES))
    rows = list(csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8")))
    assert len(rows) == 10
    assert rows[-1]["dice"] == ""
    assert rows[-1]["empty_reference"] == "True"
    assert float(rows[0]["dice"]) == 1


def test_extremes_are_worst_median_best_and_no_image_twice():
    chosen = extremes(evaluate_cases(cases(9), classes=CLASSES), each=2)
    assert [kind for kind, _, _ in chosen] == ["worst", "worst", "median", "median", "best", "best"]
    assert [int(name[0]) for _, name, _ in chosen] == [8, 7, 5, 4, 0, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_extremes_of_few_images(count):
    chosen = extremes(evaluate_cases(cases(count), classes=CLASSES))
    assert 1 <= len({name for _, name, _ in chosen}) == len(chosen) <= count


def test_validation_dice_is_the_scored_dice():
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 4, (2, 5, 12, 12)).astype(np.uint8)
    prediction[0], reference[0] = 0, 0
    reference[1][reference[1] == 2] = 0
    table = dice_table(torch.from_numpy(prediction), torch.from_numpy(reference), 4)
    expected = [
        [row["dice"] for row in score_image(p, y, classes=4)] for p, y in zip(prediction, reference, strict=True)
    ]
    np.testing.assert_allclose(table.numpy(), expected, atol=1e-6)
    assert table[0].isnan().all()
