"""Oracles: sets of pixels, and hand-sized cases that state the conventions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segdistill.metrics.scores import METRICS, score_image
from segdistill.types import UserError

EMPTY = np.zeros((3, 4), dtype=np.uint8)  # its diagonal is 5
LEFT = np.array([[1, 1, 0, 0]] * 3, dtype=np.uint8)


def one(prediction, reference, **options):
    (row,) = score_image(prediction, reference, classes=2, **options)
    return row


def labels(shape=(5, 6), classes=3):
    return arrays(np.uint8, shape, elements=st.integers(0, classes - 1))


def test_a_hand_sized_pair():
    prediction = np.array([[0, 1, 1, 0]] * 3, dtype=np.uint8)
    row = one(prediction, LEFT)
    assert [row[key] for key in ("class", "tp", "fp", "fn", "tn")] == [1, 3, 3, 3, 3]
    assert [row[key] for key in ("dice", "precision", "recall", "specificity")] == [0.5] * 4
    assert row["iou"] == pytest.approx(1 / 3)
    # All pixels of a two-wide band are boundary; half of them lie 1 px beside the other band.
    assert [row[key] for key in ("hd95", "assd", "nsd")] == [1, 0.5, 1]
    assert one(prediction, LEFT, tolerance=0.5)["nsd"] == 0.5
    assert (row["empty_reference"], row["empty_prediction"]) == (False, False)


def test_a_perfect_prediction():
    row = one(LEFT, LEFT)
    assert {key: row[key] for key in METRICS} == {
        "dice": 1, "iou": 1, "precision": 1, "recall": 1, "specificity": 1, "hd95": 0, "assd": 0, "nsd": 1,
    }  # fmt: skip


def test_both_empty_is_undefined_but_for_specificity():
    row = one(EMPTY, EMPTY)
    assert row["specificity"] == 1
    assert all(math.isnan(row[key]) for key in METRICS if key != "specificity")
    assert (row["empty_reference"], row["empty_prediction"], row["tn"]) == (True, True, 12)


@pytest.mark.parametrize(("prediction", "reference"), [(EMPTY, LEFT), (LEFT, EMPTY)], ids=["missed", "invented"])
def test_one_empty_costs_everything(prediction, reference):
    row = one(prediction, reference)
    assert [row[key] for key in ("dice", "iou", "precision", "recall", "nsd")] == [0] * 5
    assert row["hd95"] == row["assd"] == 5
    assert row["specificity"] == (1 if reference.any() else 0.5)
    assert (row["empty_reference"], row["empty_prediction"]) == (not reference.any(), not prediction.any())


def test_the_diagonal_is_in_units_of_spacing():
    assert one(EMPTY, LEFT, spacing=(2, 3))["hd95"] == pytest.approx(math.hypot(6, 12))
    volume = np.zeros((2, 3, 4), dtype=np.uint8)
    assert one(volume, volume + 1, spacing=(5, 1, 1))["hd95"] == pytest.approx(math.sqrt(10**2 + 5**2))


def test_a_miss_is_worse_than_any_hit():
    """The largest possible distance between two pixels is less than what an empty prediction scores (MONAI#9095)."""
    prediction, reference = EMPTY.copy(), EMPTY.copy()
    prediction[0, 0] = reference[-1, -1] = 1
    assert one(prediction, reference)["hd95"] < one(EMPTY, reference)["hd95"]


def test_specificity_is_undefined_without_background():
    row = one(LEFT, np.ones_like(LEFT))
    assert math.isnan(row["specificity"])
    assert row["recall"] == 0.5


def test_only_annotated_foreground_classes_are_scored():
    prediction = np.array([[0, 1, 2, 3]], dtype=np.uint8)
    rows = score_image(prediction, prediction, classes=4, annotated=[True, True, False, True])
    assert [row["class"] for row in rows] == [1, 3]
    assert [row["class"] for row in score_image(prediction, prediction, classes=4)] == [1, 2, 3]


def test_a_volume_of_one_slice_scores_as_the_image():
    square, moved = np.zeros((2, 12, 12), dtype=np.uint8)
    square[2:9, 2:9] = 1
    moved[3:11, 3:10] = 1
    assert one(moved[None], square[None], spacing=(5, 1, 2)) == one(moved, square, spacing=(1, 2))


def test_a_volume_is_measured_across_its_slices():
    first, second = np.zeros((2, 4, 5, 5), dtype=np.uint8)
    first[0, 2, 2] = second[3, 2, 2] = 1
    assert one(first, second, spacing=(2.5, 1, 1))["hd95"] == pytest.approx(7.5)


@settings(max_examples=50, deadline=None)
@given(prediction=labels(), reference=labels())
def test_overlap_matches_sets_of_pixels(prediction, reference):
    for row in score_image(prediction, reference, classes=3):
        p, r = (set(map(tuple, np.argwhere(m == row["class"]))) for m in (prediction, reference))
        assert (row["tp"], row["fp"], row["fn"], row["tn"]) == (len(p & r), len(p - r), len(r - p), 30 - len(p | r))
        if p and r:
            assert row["dice"] == pytest.approx(2 * len(p & r) / (len(p) + len(r)))
            assert row["iou"] == pytest.approx(len(p & r) / len(p | r))
            assert row["precision"] == pytest.approx(len(p & r) / len(p))
            assert row["recall"] == pytest.approx(len(p & r) / len(r))


@settings(max_examples=50, deadline=None)
@given(prediction=labels(), reference=labels())
def test_swapping_swaps_precision_and_recall_and_nothing_else(prediction, reference):
    swapped = {"precision": "recall", "recall": "precision", "fp": "fn", "fn": "fp"}
    swapped |= {"empty_reference": "empty_prediction", "empty_prediction": "empty_reference"}
    there = score_image(prediction, reference, classes=3)
    back = score_image(reference, prediction, classes=3)
    for a, b in zip(there, back, strict=True):
        for key in a.keys() - {"specificity"}:
            assert a[key] == pytest.approx(b[swapped.get(key, key)], nan_ok=True)


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "message"),
    [
        (EMPTY, EMPTY[:2], {}, "prediction is 3 x 4, reference is 2 x 4"),
        (EMPTY, LEFT * 255, {}, r"reference has values \[0, 255\]; expected class indices 0..1"),
        (LEFT.astype(np.int16) - 2, EMPTY, {}, r"prediction has values \[-2, -1\]"),
        (EMPTY[:0], EMPTY[:0], {}, "are 0 x 4: no pixel to score"),
        (EMPTY, LEFT, {"spacing": (1.0,)}, "expected 2 positive sizes"),
        (EMPTY, LEFT, {"spacing": (1.0, 0.0)}, "expected 2 positive sizes"),
    ],
)
def test_bad_input_is_one_line(prediction, reference, options, message):
    with pytest.raises(UserError, match=message) as error:
        one(prediction, reference, **options)
    assert "\n" not in str(error.value)
