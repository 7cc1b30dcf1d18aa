"""Oracles: scipy.stats.bootstrap, and a plain loop that draws patients one by one."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from scipy import stats

from segdistill.metrics import bootstrap
from segdistill.metrics.bootstrap import bootstrap_interval


def loop_oracle(values, group, resamples):
    """Percentile interval of the mean; a resample is a list of patients, its images are pooled."""
    draw = random.Random(1)
    patients = {g: [v for v, h in zip(values, group, strict=True) if h == g and v == v] for g in set(group)}
    means = []
    for _ in range(resamples):
        drawn = [v for g in draw.choices(list(patients), k=len(patients)) for v in patients[g]]
        if drawn:
            means.append(statistics.fmean(drawn))
    return np.percentile(means, [2.5, 97.5])


def test_ungrouped_interval_matches_scipy():
    values = np.random.default_rng(0).beta(5, 2, 40)
    low, high = bootstrap_interval(values[:, None], np.arange(40), resamples=20_000, seed=0)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert low[0] == pytest.approx(expected.low, abs=0.003)
    assert high[0] == pytest.approx(expected.high, abs=0.003)


def test_grouped_interval_with_gaps_matches_a_loop():
    generator = np.random.default_rng(0)
    group = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 6])
    values = generator.normal(size=7)[group] + 0.1 * generator.normal(size=14)
    values[[2, 6, 9]] = np.nan  # patient 2 has no value left
    low, high = bootstrap_interval(values[:, None], group, resamples=20_000, seed=0)
    expected = loop_oracle(values.tolist(), group.tolist(), 20_000)
    assert [low[0], high[0]] == pytest.approx(expected, abs=0.03)


def test_images_of_one_patient_do_not_narrow_the_interval():
    """Nine copies of each image carry no news; drawn as images they would narrow the interval three times."""
    values = np.random.default_rng(0).normal(size=20)
    single = bootstrap_interval(values[:, None], np.arange(20), resamples=4000, seed=0)
    copies = np.repeat(values, 9)[:, None]
    grouped = bootstrap_interval(copies, np.repeat(np.arange(20), 9), resamples=4000, seed=0)
    naive = bootstrap_interval(copies, np.arange(180), resamples=4000, seed=0)
    np.testing.assert_allclose(grouped, single)
    assert (naive[1] - naive[0]) / (single[1] - single[0]) == pytest.approx(1 / 3, abs=0.05)


def test_fewer_than_two_groups_have_no_interval():
    values = np.array([[1.0, np.nan, np.nan], [2.0, 3.0, np.nan], [4.0, 5.0, np.nan]])
    low, high = bootstrap_interval(values, np.array([0, 1, 1]), resamples=100, seed=0)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, True, True]
    assert np.isnan(bootstrap_interval(values, np.zeros(3, int), resamples=100, seed=0)).all()


def test_rare_values_count_only_where_they_are_drawn():
    values = np.full((50, 1), np.nan)
    values[:2, 0] = 0.2, 0.6
    low, high = bootstrap_interval(values, np.arange(50), resamples=2000, seed=0)
    assert (low[0], high[0]) == pytest.approx((0.2, 0.6))


def test_seeded():
    values = np.random.default_rng(0).normal(size=(30, 2))
    first, again, other = (bootstrap_interval(values, np.arange(30), resamples=200, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("draws", [1, 70, 10**6])
def test_chunks_make_all_resamples(draws, monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWS_PER_CHUNK", draws)
    weights = np.concatenate(list(bootstrap.group_weights(30, 200, 0)))
    assert weights.shape == (200, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert len(np.unique(weights, axis=0)) == 200
