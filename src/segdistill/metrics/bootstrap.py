"""Percentile bootstrap of means over groups."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

DRAWS_PER_CHUNK = 2_000_000  # 16 MB for the draws, as much for the weights made of them


Seed = int | tuple[int, ...]


def bootstrap_interval(
    values: NDArray[np.float64], group: NDArray[np.intp], *, resamples: int, seed: Seed
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the 95 % percentile intervals of the column means of `values` (N, V), NaN excluded: two arrays (V,).

    Whole groups are drawn with replacement (cluster bootstrap), the same ones for all columns. A resample that holds
    no value of a column does not count for it; a column with values in fewer than two groups has no interval: NaN.

    Args:
        values: (N, V), one row per image.
        group: (N,) indices 0..G-1, each of which occurs: the patient of the image, or the image itself.
        resamples: Number of resamples.
        seed: Seed of the draws.
    """
    return percentiles(bootstrap_means(values, group, resamples=resamples, seed=seed))


def bootstrap_means(
    values: NDArray[np.float64], group: NDArray[np.intp], *, resamples: int, seed: Seed
) -> NDArray[np.float64]:
    """The column means (resamples, V) of each resample of `bootstrap_interval`; all NaN where there is no interval."""
    groups = int(group.max()) + 1
    sums, counts = np.zeros((2, groups, values.shape[1]))
    np.add.at(sums, group, np.nan_to_num(values))
    np.add.at(counts, group, (~np.isnan(values)).astype(np.float64))
    means = np.concatenate([divide(w @ sums, w @ counts) for w in group_weights(groups, resamples, seed)])
    means[:, (counts > 0).sum(axis=0) < 2] = np.nan
    return means


def percentiles(means: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends (V,) of the 95 % intervals of resampled means (R, V); NaN for a column without any."""
    low, high = np.full((2, means.shape[1]), np.nan)
    for column in np.flatnonzero(~np.isnan(means).all(axis=0)):
        low[column], high[column] = np.nanpercentile(means[:, column], (2.5, 97.5))
    return low, high


def group_weights(groups: int, resamples: int, seed: Seed) -> Iterator[NDArray[np.float64]]:
    """How often each group occurs in each resample: chunks (R, G) of `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_PER_CHUNK // groups)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        draws = generator.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        yield np.bincount(draws.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)


def divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """`part / whole`; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def plain_number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else float(value)
