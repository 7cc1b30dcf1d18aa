"""The polyp literature's metrics against their definitions written out pixel by pixel, by hand, and pysodmetrics."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from segdistill.metrics.bootstrap import bootstrap_interval
from segdistill.metrics.overlap import count, overlap_scores
from segdistill.metrics.polyp import (
    POLYP_METRICS,
    POLYP_SCORES,
    e_curve,
    overlap_curves,
    polyp_scores,
    s_measure,
    stretched,
    summarise_polyp,
    weighted_f,
)

TINY = np.spacing(1)


def blob(size=(23, 31), seed=0):
    """A map and a mask that agree in most places."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    mask = (y - 9) ** 2 + 0.5 * (x - 17) ** 2 < 40
    return np.clip(0.75 * mask + 0.25 * rng.random(size), 0, 1), mask


def test_every_threshold_by_hand():
    prob, mask = blob()
    dice, iou = overlap_curves(prob, mask)
    for i, threshold in enumerate(np.linspace(0, 1, 256)):
        wanted = overlap_scores(count(prob >= threshold, mask))
        assert dice[i] == pytest.approx(wanted["dice"])
        assert iou[i] == pytest.approx(wanted["iou"])
    assert dice[0] == pytest.approx(2 * mask.mean() / (1 + mask.mean()))  # everything is predicted


def test_a_value_on_a_threshold_meets_it():
    """8-bit maps lie on the thresholds, all of them."""
    prob = (np.arange(256) / 255)[None]
    dice, _ = overlap_curves(prob, np.ones((1, 256), bool))
    np.testing.assert_allclose(dice, [2 * (256 - i) / (512 - i) for i in range(256)])


def test_mean_dice_is_not_dice_at_a_half():
    """p = .5 on the object, 0 elsewhere: perfect up to t = .5, nothing above; t = 0 predicts everything."""
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    dice, iou = overlap_curves(0.5 * mask, mask)
    assert dice[127] == 1
    assert dice.mean() == pytest.approx((2 / 3 + 127) / 256)
    assert iou.mean() == pytest.approx((1 / 2 + 127) / 256)
    assert polyp_scores(0.5 * mask, mask)["mdice_256"] == pytest.approx((2 / 3 + 255) / 256)  # stretched to 0 and 1


def test_e_measure_pixel_by_pixel():
    prob, mask = blob()
    curve = e_curve(prob, mask)
    for i in range(0, 256, 5):
        binary = (prob >= np.linspace(0, 1, 256)[i]).astype(float)
        a, b = binary - binary.mean(), mask - mask.mean()
        phi = (2 * a * b / (a**2 + b**2 + TINY) + 1) ** 2 / 4
        assert curve[i] == pytest.approx(phi.sum() / (mask.size - 1 + TINY))


def test_e_measure_of_empty_and_full_references():
    prob = np.array([[0.0, 0.2], [0.6, 1.0]])
    nothing, everything = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    assert e_curve(prob, nothing)[128] == pytest.approx(2 / 3)  # 2 of 4 pixels, over N - 1
    assert e_curve(prob, everything)[30] == pytest.approx(3 / 3)


def s_by_definition(p, y):
    """Fan et al. 2017 with MATLAB's conventions, indices from 1, written from the formulas."""

    def similarity(values):
        m = np.mean(values)
        return 2 * m / (m * m + 1 + np.std(values, ddof=1) + TINY)

    inside = y.mean() * similarity(p[y]) + (1 - y.mean()) * similarity(1 - p[~y])
    rows, columns = y.shape
    cy = round(sum((i + 1) * y[i].sum() for i in range(rows)) / y.sum())
    cx = round(sum((j + 1) * y[:, j].sum() for j in range(columns)) / y.sum())
    total = 0.0
    for r0, r1 in ((0, cy), (cy, rows)):
        for c0, c1 in ((0, cx), (cx, columns)):
            a, b = p[r0:r1, c0:c1].ravel(), y[r0:r1, c0:c1].ravel().astype(float)
            (va, cov), (_, vb) = np.cov(a, b)
            top, bottom = 4 * a.mean() * b.mean() * cov, (a.mean() ** 2 + b.mean() ** 2) * (va + vb)
            q = top / (bottom + TINY) if top != 0 else (1.0 if bottom == 0 else 0.0)
            total += q * a.size / y.size
    return max(0, 0.5 * inside + 0.5 * total)


@pytest.mark.parametrize("seed", range(4))
def test_s_measure_by_definition(seed):
    prob, mask = blob(seed=seed)
    assert s_measure(prob, mask) == pytest.approx(s_by_definition(prob, mask))
    assert s_measure(1 - prob, mask) == pytest.approx(s_by_definition(1 - prob, mask))


def test_s_measure_at_the_limits():
    prob, mask = blob()
    assert s_measure(mask.astype(float), mask) == pytest.approx(1)
    assert s_measure(prob, np.zeros_like(mask)) == pytest.approx(1 - prob.mean())
    assert s_measure(prob, np.ones_like(mask)) == pytest.approx(prob.mean())


@pytest.mark.parametrize("corner", [(0, 0), (22, 30), (0, 30), (10, 30)])
def test_an_object_of_one_pixel_at_the_edge_is_scored(corner):
    """Blocks of no pixel and of one: no NaN, no warning."""
    mask = np.zeros((23, 31), bool)
    mask[corner] = True
    prob = blob()[0]
    assert all(np.isfinite(value).all() for value in polyp_scores(prob, mask).values())
    assert s_measure(mask.astype(float), mask) == pytest.approx(1)


def weighted_f_by_definition(p, y):
    """Margolin et al. 2014 with loops; ties in `nearest` do not matter where the error is the same."""
    error = np.abs(p - y)
    inside = np.argwhere(y)
    borrowed, distance = error.copy(), np.zeros(y.shape)
    for i, j in np.argwhere(~y):
        squares = ((inside - (i, j)) ** 2).sum(1)
        distance[i, j] = np.sqrt(squares.min())
        borrowed[i, j] = error[tuple(inside[squares.argmin()])]
    g = np.exp(-(np.add.outer(np.arange(-3, 4) ** 2, np.arange(-3, 4) ** 2)) / 50)
    g /= g.sum()
    padded = np.pad(borrowed, 3)
    smooth = np.array(
        [[(padded[i : i + 7, j : j + 7] * g).sum() for j in range(y.shape[1])] for i in range(y.shape[0])]
    )
    least = np.where(y & (smooth < error), smooth, error)
    weighted = least * np.where(y, 1, 2 - np.exp(np.log(0.5) / 5 * distance))
    hit, false = y.sum() - weighted[y].sum(), weighted[~y].sum()
    recall, precision = 1 - weighted[y].mean(), hit / (TINY + hit + false)
    return 2 * recall * precision / (TINY + recall + precision)


def test_weighted_f_by_definition():
    prob, mask = blob()
    constant = np.where(mask, 0.7, prob)  # one error inside: the nearest pixel's is the same whichever it is
    assert weighted_f(constant, mask) == pytest.approx(weighted_f_by_definition(constant, mask))
    one = np.zeros_like(mask)
    one[11, 7] = True
    assert weighted_f(prob, one) == pytest.approx(weighted_f_by_definition(prob, one))


def test_a_far_false_alarm_costs_more_and_nothing_to_find_is_zero():
    mask = np.zeros((40, 40), bool)
    mask[4:10, 4:10] = True
    near, far = mask.astype(float), mask.astype(float)
    near[10:13, 4:10] = 1
    far[36:39, 30:36] = 1
    assert weighted_f(mask.astype(float), mask) == pytest.approx(1)
    assert weighted_f(far, mask) < weighted_f(near, mask) < 1
    assert weighted_f(near, np.zeros_like(mask)) == 0


def test_maps_are_stretched_as_in_the_literature():
    prob, mask = blob()
    np.testing.assert_allclose(stretched(np.array([[0.2, 0.3], [0.4, 0.6]])), [[0, 0.25], [0.5, 1]])
    np.testing.assert_array_equal(stretched(np.full((2, 2), 0.3)), 0.3)
    faint, whole = polyp_scores(0.1 + 0.2 * prob, mask), polyp_scores(prob, mask)
    np.testing.assert_allclose(faint.pop("e_curve"), whole.pop("e_curve"))
    assert faint == pytest.approx(whole)


def test_scores_have_their_names_and_mae_is_plain():
    prob, mask = blob()
    scores = polyp_scores(prob, mask)
    assert tuple(scores) == (*POLYP_SCORES, "e_curve")
    assert scores["mae"] == pytest.approx(np.abs(stretched(prob) - mask).mean())
    assert scores["e_measure_mean"] == pytest.approx(e_curve(stretched(prob), mask).mean())
    np.testing.assert_array_equal(scores["e_curve"], e_curve(stretched(prob), mask))
    perfect = polyp_scores(mask.astype(np.float32), mask)
    assert perfect["mae"] == 0
    assert perfect["weighted_f"] == pytest.approx(1)


def test_nothing_to_find_has_no_score_and_is_left_out():
    prob, mask = blob()
    empty = polyp_scores(prob, np.zeros_like(mask))
    assert all(np.isnan(value).all() for value in empty.values())
    rows = [polyp_scores(prob, mask), empty]
    block = summarise_polyp(rows, np.arange(2), resamples=50, seed=0)
    assert block["mae"] == {"mean": pytest.approx(rows[0]["mae"]), "low": None, "high": None, "n": 1}
    nothing = summarise_polyp([empty], np.arange(1), resamples=50, seed=0)
    assert nothing["e_measure_max"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_the_largest_e_measure_is_that_of_the_mean_curve():
    """Two images whose best thresholds lie apart: the literature's maximum is below the mean of their own."""
    noise, (_, mask) = np.random.default_rng(0).random((6, 23, 31)), blob()
    rows = [polyp_scores((0.3 * mask + 0.7 * n) ** power, mask) for n in noise for power in (1, 4)]
    curves = np.array([row["e_curve"] for row in rows])
    block = summarise_polyp(rows, np.arange(12), resamples=200, seed=0)
    assert tuple(block) == tuple(POLYP_METRICS)
    assert block["e_measure_max"]["mean"] == pytest.approx(curves.mean(0).max())
    assert block["e_measure_max"]["mean"] < curves.max(1).mean()
    for name in POLYP_SCORES:
        assert block[name]["mean"] == pytest.approx(np.mean([row[name] for row in rows]))
    for value in block.values():
        assert value["low"] < value["mean"] < value["high"]
        assert value["n"] == 12


def test_intervals_draw_patients_whole():
    rows = [polyp_scores(*blob(seed=seed)) for seed in range(6)]
    group = np.array([0, 0, 1, 1, 2, 2])
    block = summarise_polyp(rows, group, resamples=500, seed=1)
    values = np.array([row["mae"] for row in rows])
    low, high = bootstrap_interval(values[:, None], group, resamples=500, seed=1)
    assert (block["mae"]["low"], block["mae"]["high"]) == pytest.approx((low[0], high[0]))
    assert summarise_polyp(rows, group * 0, resamples=50, seed=1)["mae"]["low"] is None


def recorded_case(number):
    """An 8-bit map that meets its mask in part, and the mask."""
    shapes = ((40, 56, 13, 30, 9), (33, 47, 16, 8, 6), (64, 48, 50, 40, 14), (50, 50, 25, 25, 4))
    height, width, cy, cx, radius = shapes[number]
    y, x = np.mgrid[:height, :width]
    mask = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    moved = (y - cy - 3) ** 2 + (x - cx + 2) ** 2 < (radius + 1) ** 2
    return (110 * moved + (37 * y + 101 * x + 13 * y * x) % 130).astype(np.uint8), mask


def test_the_numbers_are_those_of_pysodmetrics():
    reference = json.loads((Path(__file__).parents[1] / "reference" / "polyp_metrics.json").read_text(encoding="utf-8"))
    rows = [polyp_scores(p / 255, mask) for p, mask in map(recorded_case, range(4))]
    for name in POLYP_SCORES:
        assert [row[name] for row in rows] == pytest.approx(reference["images"][name], rel=1e-9)
    block = summarise_polyp(rows, np.arange(4), resamples=10, seed=0)
    assert block["e_measure_max"]["mean"] == pytest.approx(reference["e_measure_max"], rel=1e-9)


def test_an_image_takes_less_than_a_tenth_of_a_second():
    prob, mask = blob((352, 352))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        polyp_scores(prob, mask)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
