"""Two methods on the same images: paired differences with intervals over patients and over training seeds.

Patients and seeds are drawn separately (Owen 2007, "The pigeonhole bootstrap"): a resample draws seeds, and one set of
patients for all of them. Drawing patients anew within each seed would take the same test image under five seeds for
five images and make the interval up to sqrt(5) times too narrow; where seeds share no patient, both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .bootstrap import divide, group_weights, percentiles

FEWEST = 6  # sign test: with five pairs even five wins have p = 2 / 2^5 > 0.05
Verdict = Literal["better", "worse", "unclear", "equal", "too few", "none"]


@dataclass(frozen=True)
class Difference:
    """Other minus baseline, where both have a score; NaN where there is nothing to tell."""

    baseline: float  # mean over seeds of the means over images
    other: float
    mean: float
    low: float  # ends of the 95 % interval
    high: float
    pairs: int  # images, counted once per seed
    groups: int  # patients, or images where patients are unknown
    equal: bool  # every single pair

    def verdict(self, *, higher_is_better: bool) -> Verdict:
        """What the interval allows to say of the other."""
        if not self.pairs:
            return "none"
        if self.equal:
            return "equal"
        if self.groups < FEWEST:
            return "too few"
        if self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.mean > 0) == higher_is_better else "worse"

    @property
    def visible(self) -> float:
        """Half the width of the interval: about how large a difference must be to be seen on these images."""
        return (self.high - self.low) / 2


def paired_differences(
    baseline: NDArray[np.float64],
    other: NDArray[np.float64],
    *,
    seed_of: NDArray[np.intp],
    group: NDArray[np.intp],
    resamples: int = 2000,
    seed: int = 0,
) -> list[Difference]:
    """The difference of each column with its 95 % percentile interval.

    The mean is taken over the images of a seed, then over seeds. With one seed the draws are over patients alone.
    A column with values of fewer than two patients has no interval.

    Args:
        baseline: (N, V) scores, one row per seed and image, one column per score. NaN: undefined.
        other: (N, V) scores of the same seeds and images.
        seed_of: (N,) indices 0..S-1, each of which occurs: the training seed of the row.
        group: (N,) indices 0..P-1, each of which occurs: the patient of the row, the same under every seed.
        resamples: Number of resamples.
        seed: Of the draws.
    """
    S, P, V = int(seed_of.max()) + 1, int(group.max()) + 1, baseline.shape[1]
    defined = ~(np.isnan(baseline) | np.isnan(other))
    change = np.where(defined, other - baseline, 0.0)

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros((S, P, V))
        np.add.at(total, (seed_of, group), values)
        return total

    counts = sums(defined.astype(np.float64))  # (S, P, V)
    once, each = np.ones((1, P)), np.ones((1, S))
    base, new = (_mean(once, each, sums(np.where(defined, scores, 0.0)), counts)[0] for scores in (baseline, other))
    mean = _mean(once, each, sums(change), counts)[0]
    low, high = _interval(sums(change), counts, resamples, seed)
    groups = (counts.sum(axis=0) > 0).sum(axis=0)
    return [
        Difference(
            baseline=float(base[v]),
            other=float(new[v]),
            mean=float(mean[v]),
            low=float(low[v]),
            high=float(high[v]),
            pairs=int(defined[:, v].sum()),
            groups=int(groups[v]),
            equal=not change[:, v].any(),
        )
        for v in range(V)
    ]


def _interval(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    S, P, V = sums.shape
    seeds = np.random.default_rng([seed, 1]).multinomial(S, [1 / S] * S, size=resamples).astype(np.float64)
    drawn, start = np.empty((resamples, V)), 0
    for weights in group_weights(P, resamples, seed):
        part = slice(start, start + len(weights))
        drawn[part] = _mean(weights, seeds[part], sums, counts)
        start = part.stop
    drawn[:, (counts.sum(axis=0) > 0).sum(axis=0) < 2] = np.nan
    return percentiles(drawn)


def _mean(
    patients: NDArray[np.float64],
    seeds: NDArray[np.float64],
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(R, V) means of R resamples, in which patients count (R, P) times and seeds (R, S) times."""
    within = divide(np.tensordot(patients, sums, (1, 1)), np.tensordot(patients, counts, (1, 1)))  # (R, S, V)
    weight = seeds[:, :, None] * ~np.isnan(within)
    return divide((weight * np.nan_to_num(within)).sum(axis=1), weight.sum(axis=1))
