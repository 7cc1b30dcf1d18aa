"""The polyp literature's own metrics, from a probability map and a binary mask: for comparison with its tables.

They follow the MATLAB evaluation of PraNet (Fan et al. 2020), which Polyp-PVT and KDAS use, and PySODMetrics, which
restates it. Where the two differ (a centroid exactly between two pixels; parts of one pixel) ours is MATLAB's. A map is
first stretched to [0, 1] (`stretched`), as both do. "mDice" and "mIoU" are means over 256 thresholds, not values at
one; at 0.5 they are the `dice` and `iou` of `scores.py`. The largest E-measure belongs to a set, not to an image:
`summarise_polyp` finds it, as the highest point of the curve averaged over images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import bootstrap_means, percentiles, plain_number

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]

POLYP_SCORES = ("s_measure", "e_measure_mean", "weighted_f", "mae", "mdice_256", "miou_256")  # of an image
POLYP_METRICS = {  # of a set, and as tables call them
    "s_measure": "S-measure",
    "e_measure_mean": "E mean",
    "e_measure_max": "E max",
    "weighted_f": "weighted F",
    "mae": "MAE",
    "mdice_256": "mDice 256",
    "miou_256": "mIoU 256",
}
CURVE = "e_curve"  # beside the scores in a row of the table
THRESHOLDS = np.arange(256) / 255
EPS = float(np.spacing(1))  # MATLAB's eps


def polyp_scores(prob: NDArray[np.floating], reference: Mask) -> dict[str, Any]:
    """The scores of one image by the names in POLYP_SCORES, and its E-measure at 256 thresholds as `e_curve`.

    An empty reference: all NaN, to be left out and counted. These metrics stretch each map until something is found.

    Args:
        prob: (H, W) in [0, 1].
        reference: (H, W).
    """
    if not reference.any():
        return dict.fromkeys(POLYP_SCORES, math.nan) | {CURVE: np.full(len(THRESHOLDS), np.nan)}
    p = stretched(prob)
    curve, (dice, iou) = e_curve(p, reference), overlap_curves(p, reference)
    return {
        "s_measure": s_measure(p, reference),
        "e_measure_mean": float(curve.mean()),
        "weighted_f": weighted_f(p, reference),
        "mae": float(np.abs(p - reference).mean()),
        "mdice_256": float(dice.mean()),
        "miou_256": float(iou.mean()),
        CURVE: curve,
    }


def summarise_polyp(
    rows: Sequence[Mapping[str, Any]], group: NDArray[np.intp], *, resamples: int, seed: int
) -> dict[str, dict[str, float | int | None]]:
    """{"mean", "low", "high", "n"} by the names in POLYP_METRICS: mean over `n` images, 95 % bootstrap interval.

    `e_measure_max` is the literature's: of the mean curve over images its highest point, in each resample anew.

    Args:
        rows: A dict per image that holds what `polyp_scores` gave.
        group: (N,) what the bootstrap draws, as in `bootstrap_means`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    values = np.array([[*(row[name] for name in POLYP_SCORES), *row[CURVE]] for row in rows])  # (N, 6 + 256)
    known = values[~np.isnan(values[:, 0])]
    mean = known.mean(0) if len(known) else np.full(values.shape[1], np.nan)
    low, high = percentiles(_with_largest(bootstrap_means(values, group, resamples=resamples, seed=seed)))
    columns = zip((*POLYP_SCORES, "e_measure_max"), _with_largest(mean[None])[0], low, high, strict=True)
    found = {
        name: {"mean": plain_number(m), "low": plain_number(a), "high": plain_number(b), "n": len(known)}
        for name, m, a, b in columns
    }
    return {name: found[name] for name in POLYP_METRICS}


def _with_largest(means: Map) -> Map:
    """Means of scores and curves (R, 6 + 256) -> the scores and the largest point of each curve (R, 7)."""
    count = len(POLYP_SCORES)
    return np.concatenate([means[:, :count], means[:, count:].max(1, keepdims=True)], axis=1)


def stretched(prob: NDArray[np.floating]) -> Map:
    """(p - min) / (max - min), the literature's preparation; a constant map stays as it is."""
    p = np.asarray(prob, np.float64)
    low, high = p.min(), p.max()
    return (p - low) / (high - low) if high > low else p


def overlap_curves(prob: NDArray[np.floating], reference: Mask) -> tuple[Map, Map]:
    """Dice and IoU of p >= t against the reference for the 256 t = 0/255 ... 255/255; 0 where nothing is met."""
    hit, predicted = _counts(prob, reference)
    real = np.count_nonzero(reference)
    dice = 2 * hit / np.maximum(predicted + real, 1)
    return dice, hit / np.maximum(predicted + real - hit, 1)


def e_curve(prob: NDArray[np.floating], reference: Mask) -> Map:
    """The enhanced-alignment measure (Fan et al. 2018) of p >= t for the 256 thresholds t.

    phi = (2 a b / (a^2 + b^2) + 1)^2 / 4 over pixels, a and b prediction and reference less their means; the sum over
    N - 1, as in MATLAB. An empty reference: 1 - prediction; a full one: the prediction.
    """
    hit, predicted = _counts(prob, reference)
    size, real = reference.size, np.count_nonzero(reference)
    if real == 0:
        total = (size - predicted).astype(np.float64)
    elif real == size:
        total = predicted.astype(np.float64)
    else:
        # A binary pair takes four values: prediction 1 or 0 against reference 1 or 0.
        total = np.zeros(len(THRESHOLDS))
        numbers = ((hit, predicted - hit), (real - hit, size - real - predicted + hit))
        for value, row in zip((1, 0), numbers, strict=True):
            for truth, number in zip((1, 0), row, strict=True):
                a, b = value - predicted / size, truth - real / size
                total += number * (2 * a * b / (a**2 + b**2 + EPS) + 1) ** 2 / 4
    return total / (size - 1 + EPS)


def s_measure(prob: NDArray[np.floating], reference: Mask) -> float:
    """The structure measure (Fan et al. 2017): half object, half region similarity, at least 0.

    An empty reference: 1 - mean p; a full one: mean p.
    """
    p = np.asarray(prob, np.float64)
    share = float(reference.mean())
    if share in (0.0, 1.0):
        return float(p.mean()) if share else 1 - float(p.mean())
    similar = share * _object(p[reference]) + (1 - share) * _object(1 - p[~reference])
    return max(0.0, 0.5 * similar + 0.5 * _region(p, reference.astype(np.float64)))


def weighted_f(prob: NDArray[np.floating], reference: Mask) -> float:
    """The weighted F-measure (Margolin et al. 2014), beta 1: errors spread over neighbours, far false alarms cost more.

    Background pixels take the error of the nearest foreground pixel before a 7 x 7 Gaussian (sigma 5) averages it; at a
    distance d from the foreground an error weighs 2 - 0.5^(d / 5). An empty reference: 0, as in PySODMetrics.
    """
    from scipy.ndimage import correlate1d, distance_transform_edt

    if not reference.any():
        return 0.0
    error = np.abs(np.asarray(prob, np.float64) - reference)
    distance, nearest = distance_transform_edt(~reference, return_indices=True)
    borrowed = error[tuple(nearest)]  # of itself inside the foreground
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / 50.0)
    smooth = borrowed
    for axis in (0, 1):  # a Gaussian is separable
        smooth = correlate1d(smooth, kernel / kernel.sum(), axis, mode="constant")
    weighted = np.where(reference, np.minimum(error, smooth), error * (2 - 0.5 ** (distance / 5)))
    missed = weighted[reference]
    hit = missed.size - missed.sum()
    recall = 1 - missed.mean()
    precision = hit / (EPS + hit + weighted[~reference].sum())
    return float(2 * recall * precision / (EPS + recall + precision))


def _counts(prob: NDArray[np.floating], reference: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per threshold: pixels predicted and real, pixels predicted."""
    # The number of thresholds t_i <= p, found by comparing with the t_i themselves: p * 255 may round across one.
    level = np.searchsorted(THRESHOLDS, np.asarray(prob, np.float64).ravel(), side="right")
    per_level = np.bincount(level + 257 * reference.ravel(), minlength=514).reshape(2, 257)
    at_least = per_level[:, :0:-1].cumsum(1)[:, ::-1]
    return at_least[1], at_least.sum(0)


def _object(values: Map) -> float:
    """Similarity of a part's values to 1: 2 m / (m^2 + 1 + std)."""
    mean = values.mean()
    spread = values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean**2 + 1 + spread + EPS))


def _region(p: Map, y: Map) -> float:
    """Similarity of the four blocks around the reference's centroid, weighted by their area."""
    row, column = (int(np.floor(c.mean() + 1.5)) for c in np.nonzero(y))  # MATLAB: round half up, counted from 1
    blocks = [(r, c) for r in (slice(row), slice(row, None)) for c in (slice(column), slice(column, None))]
    return sum(y[block].size / y.size * _ssim(p[block], y[block]) for block in blocks if y[block].size)


def _ssim(p: Map, y: Map) -> float:
    """Structural similarity of two blocks: 4 mp my s_py / ((mp^2 + my^2)(s_p^2 + s_y^2)); two constant blocks: 1."""
    mean_p, mean_y, n = p.mean(), y.mean(), max(p.size - 1, 1)
    covariance = ((p - mean_p) * (y - mean_y)).sum() / n
    variances = (((p - mean_p) ** 2).sum() + ((y - mean_y) ** 2).sum()) / n
    upper = 4 * mean_p * mean_y * covariance
    lower = (mean_p**2 + mean_y**2) * variances
    if upper != 0:
        return float(upper / (lower + EPS))
    return 1.0 if lower == 0 else 0.0
