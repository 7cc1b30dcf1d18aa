"""Oracles: scipy.stats.bootstrap, a plain loop over seeds and patients, cases of hand size, coverage in simulation."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from scipy import stats

from segdistill.metrics.paired import Difference, paired_differences


def rows(table, seeds, images):
    """(seeds, images) scores -> (N, 1), seed and image of each row."""
    seed_of, group = np.divmod(np.arange(seeds * images), images)
    return np.asarray(table, dtype=float).reshape(-1, 1), seed_of, group


def simple(change, seeds=1, **options):
    change, seed_of, group = rows(change, seeds, np.asarray(change).size // seeds)
    return paired_differences(np.full_like(change, 0.5), 0.5 + change, seed_of=seed_of, group=group, **options)[0]


def loop_oracle(baseline, other, seed_of, group, resamples):
    """Draw seeds, and one list of patients for all of them; pool the images of each seed; average the seeds."""
    draw = random.Random(1)
    table = {}
    for b, o, s, g in zip(baseline, other, seed_of, group, strict=True):
        if b == b and o == o:
            table.setdefault(s, {}).setdefault(g, []).append(o - b)
    every_seed, every_patient = sorted(set(seed_of)), sorted(set(group))
    means = []
    for _ in range(resamples):
        patients = draw.choices(every_patient, k=len(every_patient))
        per_seed = []
        for s in draw.choices(every_seed, k=len(every_seed)):
            values = [v for g in patients for v in table[s].get(g, [])]
            if values:
                per_seed.append(statistics.fmean(values))
        if per_seed:
            means.append(statistics.fmean(per_seed))
    return np.percentile(means, [2.5, 97.5])


def test_one_seed_matches_scipy():
    rng = np.random.default_rng(0)
    baseline, other = rng.beta(5, 2, (2, 40, 1))
    found = paired_differences(baseline, other, seed_of=np.zeros(40, int), group=np.arange(40), resamples=20_000)[0]
    expected = stats.bootstrap(
        (other[:, 0], baseline[:, 0]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.mean == pytest.approx(np.mean(other - baseline))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_seeds_patients_and_gaps_match_a_loop():
    """Three seeds with test sets that overlap in part, patients with several images, undefined scores."""
    rng = np.random.default_rng(3)
    seed_of = np.repeat([0, 1, 2], [9, 7, 8])
    group = np.array([0, 0, 1, 2, 2, 3, 4, 4, 5, 0, 0, 1, 3, 6, 6, 7, 2, 2, 5, 6, 6, 8, 8, 9])
    baseline, other = rng.normal(size=(2, 24)) + rng.normal(size=3)[seed_of] + rng.normal(size=10)[group]
    other += 2 * rng.normal(size=3)[seed_of]
    baseline[[3, 11]], other[[3, 20]] = np.nan, np.nan
    found = paired_differences(baseline[:, None], other[:, None], seed_of=seed_of, group=group, resamples=20_000)[0]
    expected = loop_oracle(baseline.tolist(), other.tolist(), seed_of.tolist(), group.tolist(), 20_000)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.06)
    assert found.pairs == 21


def test_a_case_of_hand_size():
    """Seed 0: +.1, +.3 (mean .2); seed 1: +.6 (the other image has no score). Seeds weigh the same: mean .4."""
    baseline = np.array([[0.2], [0.2], [0.3], [np.nan]])
    other = np.array([[0.3], [0.5], [0.9], [0.4]])
    found = paired_differences(
        baseline, other, seed_of=np.array([0, 0, 1, 1]), group=np.array([0, 1, 0, 1]), resamples=500
    )[0]
    assert (found.baseline, found.other, found.mean) == pytest.approx((0.25, 0.65, 0.4))
    assert (found.low, found.high) == pytest.approx((0.1, 0.6))
    assert (found.pairs, found.groups) == (3, 2)


def test_identical_runs_give_exactly_zero():
    scores = np.random.default_rng(0).random((30, 3))
    for found in paired_differences(scores, scores, seed_of=np.repeat([0, 1, 2], 10), group=np.arange(30) % 10):
        assert found.mean == found.low == found.high == 0
        assert found.verdict(higher_is_better=True) == "equal"


def test_swapping_flips_signs():
    baseline, other = np.random.default_rng(0).random((2, 30, 1))
    where = {"seed_of": np.repeat([0, 1, 2], 10), "group": np.arange(30) % 10}
    forth, back = paired_differences(baseline, other, **where)[0], paired_differences(other, baseline, **where)[0]
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low))
    assert (back.baseline, back.other) == pytest.approx((forth.other, forth.baseline))


def test_the_same_images_under_more_seeds_are_not_more_images():
    change = np.random.default_rng(0).normal(size=20)
    one, five = simple(change), simple(np.tile(change, 5), seeds=5)
    assert five.visible == pytest.approx(one.visible)
    assert (five.groups, five.pairs) == (20, 100)


def test_training_noise_widens_the_interval():
    change, noise = np.random.default_rng(0).normal(size=40), np.array([-1, -0.5, 0, 0.5, 1.0])
    assert simple(change + noise[:, None], seeds=5).visible > 1.2 * simple(np.tile(change, 5), seeds=5).visible


@pytest.mark.parametrize(("seeds", "images", "least"), [(1, 30, 0.90), (5, 20, 0.87), (8, 40, 0.88)])
def test_coverage(seeds, images, least):
    """The interval holds the truth nearly as often as it says, the test images being the same under every seed."""
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        training = rng.normal(0, 0.2 if seeds > 1 else 0, (seeds, 1))
        change = 0.3 + rng.normal(size=images) + training + rng.normal(0, 0.5, (seeds, images))
        found = simple(change, seeds=seeds, resamples=400, seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert least <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("low", "high", "groups", "expected"),
    [(0.1, 0.3, 50, "better"), (-0.3, -0.1, 50, "worse"), (-0.1, 0.3, 50, "unclear"), (0.1, 0.3, 5, "too few")],
)
def test_verdicts(low, high, groups, expected):
    found = Difference(0.5, 0.6, (low + high) / 2, low, high, pairs=groups, groups=groups, equal=False)
    assert found.verdict(higher_is_better=True) == expected
    other_way = {"better": "worse", "worse": "better"}
    assert found.verdict(higher_is_better=False) == other_way.get(expected, expected)


def test_nothing_paired_and_one_patient():
    nothing = paired_differences(np.full((4, 1), np.nan), np.ones((4, 1)), seed_of=np.zeros(4, int), group=np.arange(4))
    assert nothing[0].verdict(higher_is_better=True) == "none"
    assert np.isnan(nothing[0].mean)
    one = paired_differences(np.zeros((4, 1)), np.ones((4, 1)), seed_of=np.arange(4), group=np.zeros(4, int))[0]
    assert one.mean == 1
    assert np.isnan([one.low, one.high]).all()
    assert one.verdict(higher_is_better=True) == "too few"
