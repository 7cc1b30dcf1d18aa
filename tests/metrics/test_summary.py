"""Hand-sized tables; the intervals have their own oracle in test_bootstrap.py."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segdistill.metrics.bootstrap import bootstrap_interval
from segdistill.metrics.scores import METRICS, score_image
from segdistill.metrics.summary import summarise
from segdistill.types import UserError

NAMES = ["background", "polyp"]


def mask(*pixels, value=1):
    """(2, 4) with `value` at these flat positions."""
    labels = np.zeros(8, dtype=np.uint8)
    labels[list(pixels)] = value
    return labels.reshape(2, 4)


def rows(prediction, reference, image, *, patient="", dataset="kvasir", classes=2, annotated=None):
    names = {"image": image, "patient": patient, "dataset": dataset, "modality": "endoscopy"}
    return [row | names for row in score_image(prediction, reference, classes=classes, annotated=annotated)]


def table():
    """Dice 1, 0.5, 0 (missed), 0 (invented), undefined."""
    return [
        *rows(mask(0, 1), mask(0, 1), "hit.png"),
        *rows(mask(0, 1), mask(1, 2), "half.png"),
        *rows(mask(), mask(0, 1, 2, 3), "missed.png"),
        *rows(mask(7), mask(), "invented.png"),
        *rows(mask(), mask(), "agreed.png"),
    ]


def many(count, patients):
    generator = np.random.default_rng(0)
    pairs = generator.integers(0, 2, (count, 2, 4, 4)).astype(np.uint8)
    return [row for i, (p, r) in enumerate(pairs) for row in rows(p, r, f"{i}.png", patient=patients(i))]


def test_conventions_of_the_hand_sized_table():
    polyp = summarise(table(), class_names=NAMES)["classes"]["polyp"]
    assert {key: polyp[key] for key in ("images", "both_empty", "empty_reference", "empty_prediction")} == {
        "images": 5, "both_empty": 1, "empty_reference": 2, "empty_prediction": 2,
    }  # fmt: skip
    assert polyp["false_positive_rate"] == 0.5
    assert (polyp["dice"]["mean"], polyp["dice"]["median"], polyp["dice"]["n"]) == (1.5 / 4, 0.25, 4)
    assert (polyp["dice_nonempty"]["mean"], polyp["dice_nonempty"]["n"]) == (0.5, 3)
    assert polyp["specificity"]["n"] == 5
    assert polyp["pooled_dice"] == pytest.approx(2 * 3 / (2 + 2 + 2 + 2 + 0 + 4 + 1 + 0))
    diagonal = np.hypot(2, 4)
    assert polyp["hd95"]["mean"] == pytest.approx((0 + 0.95 + diagonal + diagonal) / 4)  # "half": distances 0 and 1


def test_every_statistic_has_an_interval_around_its_mean():
    summary = summarise(table(), class_names=NAMES)
    for part in (summary["classes"]["polyp"], summary["mean"]):
        for metric in METRICS:
            statistic = part[metric]
            assert set(statistic) == {"mean", "low", "high", "median", "n"}
            assert statistic["low"] <= statistic["mean"] <= statistic["high"]
    assert summary["mean"]["pooled_dice"] == summary["classes"]["polyp"]["pooled_dice"]


def test_intervals_are_those_of_the_bootstrap_over_patients():
    data = many(30, lambda i: f"p{i // 5}")
    summary = summarise(data, class_names=NAMES, resamples=500, seed=3)
    dice = np.array([[row["dice"]] for row in data])
    low, high = bootstrap_interval(dice, np.arange(30) // 5, resamples=500, seed=3)
    assert (summary["groups"], summary["grouped_by"], summary["images"]) == (6, "patient", 30)
    assert summary["classes"]["polyp"]["dice"]["low"] == pytest.approx(low[0])
    assert summary["classes"]["polyp"]["dice"]["high"] == pytest.approx(high[0])


def test_the_mean_is_over_classes_within_images_and_then_over_images():
    both = np.array([[1, 1, 2, 2]], dtype=np.uint8)
    data = [
        *rows(both, both, "a", classes=3),  # Dice 1, 1
        *rows(np.array([[1, 1, 0, 0]], np.uint8), np.array([[1, 1, 0, 0]], np.uint8), "b", classes=3),  # 1, undefined
        *rows(np.array([[1, 1, 0, 0]], np.uint8), both, "c", classes=3),  # 1, 0
        *rows(0 * both, both, "d", classes=3, annotated=[True, True, False]),  # 0, not annotated
    ]
    summary = summarise(data, class_names=["background", "liver", "spleen"])
    assert summary["mean"]["dice"]["mean"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert summary["classes"]["liver"]["dice"]["mean"] == pytest.approx(0.75)
    assert summary["classes"]["spleen"]["dice"]["mean"] == pytest.approx(0.5)
    assert summary["classes"]["liver"]["dice_nonempty"]["n"] == 4
    assert summary["classes"]["spleen"]["dice_nonempty"]["n"] == 2
    assert summary["classes"]["spleen"]["images"] == 3
    assert summary["classes"]["spleen"]["both_empty"] == 1
    assert summary["mean"]["pooled_dice"] == pytest.approx((2 * 6 / (6 + 8) + 2 * 2 / (2 + 4)) / 2)


def test_a_class_without_annotation_is_listed_as_unknown():
    data = rows(mask(0), mask(0), "a", classes=3, annotated=[True, True, False])
    spleen = summarise(data, class_names=["background", "liver", "spleen"])["classes"]["spleen"]
    assert spleen["dice"] == {"mean": None, "low": None, "high": None, "median": None, "n": 0}
    assert (spleen["images"], spleen["pooled_dice"], spleen["false_positive_rate"]) == (0, None, None)


def test_json_holds_no_nan():
    for data in (table(), table()[:1], table()[4:]):
        summary = summarise(data, class_names=NAMES)
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_one_image_has_no_interval():
    dice = summarise(table()[:1], class_names=NAMES)["mean"]["dice"]
    assert dice == {"mean": 1.0, "low": None, "high": None, "median": 1.0, "n": 1}


@pytest.mark.parametrize(
    ("patients", "groups", "grouped_by"),
    [
        (lambda i: f"p{i // 2}", 5, "patient"),
        (lambda i: f"p{i}", 10, "image"),
        (lambda i: "" if i == 4 else f"p{i // 2}", 6, "patient"),
        (lambda i: "only", 1, "patient"),
    ],
    ids=["two images each", "one image each", "one unknown", "one patient"],
)
def test_grouping(patients, groups, grouped_by):
    summary = summarise(many(10, patients), class_names=NAMES)
    assert (summary["groups"], summary["grouped_by"]) == (groups, grouped_by)


def test_one_image_without_a_patient_does_not_make_the_interval_narrow():
    """Eight patients that differ, ten images of each that do not."""

    def low(patient_of_the_first):
        patients = [patient_of_the_first, *(f"p{i // 10}" for i in range(1, 80))]
        found = []
        for i, name in enumerate(patients):
            found += rows(mask(*range(1 + i // 10)), mask(*range(8)), f"{i}.png", patient=name)
        return summarise(found, class_names=NAMES)["mean"]["dice"]["low"]

    assert low("") == pytest.approx(low("p0"), abs=0.03)


def test_datasets_are_repeated_only_where_there_are_several():
    """Images and patients of the same name in two datasets are different ones."""
    first = rows(mask(0, 1), mask(0, 1), "1.png", patient="7", dataset="kvasir")
    second = rows(mask(), mask(0, 1), "1.png", patient="7", dataset="etis")
    both = summarise(first + second, class_names=NAMES)
    assert (both["images"], both["mean"]["dice"]["mean"]) == (2, 0.5)
    assert both["grouped_by"] == "image"
    assert {name: part["mean"]["dice"]["mean"] for name, part in both["datasets"].items()} == {"etis": 0, "kvasir": 1}
    assert both["datasets"]["etis"].keys() == both.keys() - {"datasets"}
    assert "datasets" not in summarise(first, class_names=NAMES)


def test_the_order_of_rows_does_not_matter_to_the_means():
    forwards, backwards = (summarise(data, class_names=NAMES) for data in (table(), table()[::-1]))
    for metric in METRICS:
        assert forwards["mean"][metric]["mean"] == pytest.approx(backwards["mean"][metric]["mean"])


@pytest.mark.parametrize(
    ("count", "patients", "expected", "unexpected"),
    [
        (20, lambda i: f"p{i}", ["with 20 images", "about 7 Dice points"], ["unknown"]),
        (100, lambda i: "", ["with 100 images", "about 3 Dice points", "Patients are unknown"], []),
        (120, lambda i: f"p{i // 2}", ["with 60 patients", "about 4 Dice points"], ["unknown"]),
        (120, lambda i: "", ["Patients are unknown"], ["Small set"]),
        (120, lambda i: "" if i < 3 else f"p{i // 2}", ["patient of 3 images is unknown"], ["Patients are unknown"]),
        (120, lambda i: f"p{i}", [], ["."]),
        (3, lambda i: "only", ["With 1 patient,", "no interval"], []),
    ],
)
def test_the_note_says_what_limits_a_claim(count, patients, expected, unexpected):
    note = summarise(many(count, patients), class_names=NAMES)["note"]
    assert all(text in note for text in expected)
    assert not any(text in note for text in unexpected)


def test_images_without_anything_to_find_make_no_set_larger():
    nothing = [row for i in range(190) for row in rows(mask(), mask(), f"empty {i}.png", patient=f"e{i}")]
    note = summarise(many(10, lambda i: f"p{i}") + nothing, class_names=NAMES)["note"]
    assert "with 10 images" in note
    assert "there is no Dice" in summarise(nothing, class_names=NAMES)["note"]


def test_false_alarms_are_nothing_to_claim_a_dice_of():
    """An empty reference with a prediction has Dice 0; a test split of such images still shows no foreground."""
    alarms = [row for i in range(30) for row in rows(mask(1), mask(), f"alarm {i}.png", patient=f"e{i}")]
    summary = summarise(alarms, class_names=NAMES)
    assert summary["note"].startswith("No reference mask shows a foreground class")
    assert "with 10 images" in summarise(many(10, lambda i: f"p{i}") + alarms, class_names=NAMES)["note"]


def test_unit_and_tolerance_are_named():
    summary = summarise(table(), class_names=NAMES, unit="mm", tolerance=1.5)
    assert (summary["unit"], summary["tolerance"]) == ("mm", 1.5)


def test_two_rows_for_one_image_are_refused():
    with pytest.raises(ValueError, match=r"two rows for class 1 of image 'hit.png'"):
        summarise(table() + table()[:1], class_names=NAMES)


def test_no_rows():
    with pytest.raises(UserError, match="nothing to score"):
        summarise([], class_names=NAMES)


def two_modalities():
    """Four images of Dice 1 or 0 by x-ray, twelve by ultrasound; classes that only one of them annotates."""
    data = []
    for i, (modality, right) in enumerate([("xray", i < 3) for i in range(4)] + [("us", i < 3) for i in range(12)]):
        known = [True, modality == "xray", modality == "us"]
        k = 1 if modality == "xray" else 2
        prediction = mask(0) * k if right else mask(1) * k
        data += [
            row | {"modality": modality}
            for row in rows(prediction, mask(0) * k, f"{i}.png", classes=3, annotated=known, dataset="d")
        ]
    return data


def test_each_modality_counts_once_in_the_macro_mean():
    summary = summarise(two_modalities(), class_names=["background", "lung", "tumour"])
    means = {name: part["mean"]["dice"]["mean"] for name, part in summary["modalities"].items()}
    assert means == {"us": 0.25, "xray": 0.75}
    assert summary["mean"]["dice"]["mean"] == pytest.approx(6 / 16)
    assert summary["macro"]["dice"]["mean"] == 0.5
    assert summary["macro"]["dice"]["n"] == 2
    assert list(summary["modalities"]["us"]["classes"]) == ["tumour"]
    assert "datasets" not in summary
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_macro_interval_resamples_within_each_modality():
    """Oracle: the mean of two independent binomial means, its quantiles from their exact joint distribution."""
    from scipy.stats import binom

    dice = summarise(two_modalities(), class_names=["background", "lung", "tumour"], resamples=20000)["macro"]["dice"]
    x, u = np.arange(5), np.arange(13)
    values = (x[:, None] / 4 + u / 12) / 2
    weights = binom.pmf(x, 4, 0.75)[:, None] * binom.pmf(u, 12, 0.25)
    order = np.argsort(values.ravel())
    reached = np.cumsum(weights.ravel()[order])
    low, high = (values.ravel()[order][np.searchsorted(reached, level)] for level in (0.025, 0.975))
    assert (dice["low"], dice["high"]) == pytest.approx((low, high), abs=1 / 24 + 1e-9)


def test_a_modality_of_one_image_leaves_the_macro_without_an_interval():
    data = [row for row in two_modalities() if row["modality"] == "us" or row["image"] == "0.png"]
    dice = summarise(data, class_names=["background", "lung", "tumour"])["macro"]["dice"]
    assert (dice["mean"], dice["low"], dice["high"]) == (0.625, None, None)
