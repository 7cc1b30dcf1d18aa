from __future__ import annotations

import math

import numpy as np
import pytest

from segdistill.metrics.breakdown import by_patient, by_size, reference_share

AREA = 1000


def row(image, dice, reference=100, *, patient="", dataset="d", found=True):
    """A row of one class: the reference has that many of AREA pixels, half of them found."""
    tp = reference // 2 if found else 0
    counts = {"tp": tp, "fn": reference - tp, "fp": 0, "tn": AREA - reference}
    return {"image": image, "shown": image, "dataset": dataset, "patient": patient, "dice": dice} | counts


def test_thirds_by_size_against_a_sort_by_hand():
    rng = np.random.default_rng(0)
    sizes = rng.permutation(np.arange(10, 100, 10)).tolist()  # nine sizes, three in each third
    rows = [row(f"{size}", size / 100, size, found=size > 20) for size in sizes]
    rows += [row("empty", math.nan, 0), row("alarm", 0.0, 0)]
    thirds = by_size(rows)
    assert [(t.low, t.high) for t in thirds] == [(0.01, 0.03), (0.04, 0.06), (0.07, 0.09)]
    assert [t.dice["mean"] for t in thirds] == pytest.approx([0.2, 0.5, 0.8])
    assert [t.dice["n"] for t in thirds] == [3, 3, 3]
    assert [t.missed for t in thirds] == [2, 0, 0]
    for third in thirds:
        ends = third.low * 10 - 1e-9, third.high * 10 + 1e-9
        assert ends[0] <= third.dice["low"] < third.dice["mean"] < third.dice["high"] <= ends[1]
    assert reference_share(rows[0]) == sizes[0] / AREA


def test_equal_sizes_stay_together():
    assert [t.dice["n"] for t in by_size([row(str(i), 0.5, 50) for i in range(9)])] == [9]
    many = [row(str(i), 0.5, 50) for i in range(7)] + [row("a", 0.1, 60), row("b", 0.2, 70)]
    assert [(t.dice["n"], t.low, t.high) for t in by_size(many)] == [(7, 0.05, 0.05), (2, 0.06, 0.07)]


def test_intervals_are_over_patients_where_they_are_known():
    """Images of a patient that are copies of one another say nothing new: the interval is that of single images."""
    rng = np.random.default_rng(1)
    alone = [row(f"{i}", float(d), 50, patient=f"p{i}") for i, d in enumerate(rng.random(12))]
    copied = [r | {"image": f"{r['image']}-{k}"} for r in alone for k in range(5)]
    (one,), (five,) = by_size(alone), by_size(copied)
    assert (five.dice["low"], five.dice["high"]) == pytest.approx((one.dice["low"], one.dice["high"]))
    (unknown,) = by_size([r | {"patient": ""} for r in copied])
    assert unknown.dice["high"] - unknown.dice["low"] < 0.7 * (one.dice["high"] - one.dice["low"])


def test_too_few_images_have_no_thirds():
    assert by_size([row(str(i), 0.5, 10 + i) for i in range(5)]) == []
    assert by_size([row(str(i), math.nan, 0) for i in range(50)]) == []


def test_each_patient_counts_once():
    rows = [row("a1", 0.2, patient="a")] + [
        row(f"b{i}", d, patient="b") for i, d in enumerate((0.6, 0.8, 1.0, math.nan))
    ]
    patients, over = by_patient(rows)
    assert [(p.name, p.images, p.lowest, p.worst) for p in patients] == [("a", 1, 0.2, "a1"), ("b", 3, 0.6, "b0")]
    assert [p.dice for p in patients] == pytest.approx([0.2, 0.8])
    assert (over["mean"], over["n"], over["lowest"]) == pytest.approx((0.5, 2, 0.2))
    assert 0.2 <= over["low"] <= over["high"] <= 0.8


def test_classes_are_averaged_within_an_image_and_patients_told_apart_by_data_set():
    rows = [row("1", 0.2, patient="a"), row("1", 0.6, patient="a"), row("2", 0.8, patient="a")]
    rows += [row("1", 1.0, patient="a", dataset="other")]
    patients, _ = by_patient(rows)
    assert [(p.dataset, p.images) for p in patients] == [("d", 2), ("other", 1)]
    assert [p.dice for p in patients] == pytest.approx([0.6, 1.0])


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "b", ""), ("", "", "")])
def test_patients_that_say_nothing_more_than_images_are_left_out(names):
    assert by_patient([row(str(i), 0.5, patient=name) for i, name in enumerate(names)]) == ([], {})


def test_images_without_a_patient_are_of_none():
    patients, over = by_patient([row(str(i), 0.5, patient=name) for i, name in enumerate(("a", "a", "", ""))])
    assert [(p.name, p.images) for p in patients] == [("a", 2)]
    assert over["n"] == 1


def test_patients_without_a_dice_are_left_out():
    rows = [row(str(i), math.nan, 0, patient="a") for i in range(3)]
    assert by_patient(rows) == ([], {})
