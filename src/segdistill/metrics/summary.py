"""The table of per-image scores -> summary.json: per class and over classes, with confidence intervals and counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .bootstrap import bootstrap_interval, bootstrap_means, percentiles, plain_number
from .polyp import CURVE, summarise_polyp
from .scores import METRICS
from .table import Table, build_table

SMALL = 100  # up to here the note says what a claim needs


def summarise(
    rows: Sequence[Mapping[str, Any]],
    *,
    class_names: Sequence[str],
    kind: str = "image",
    unit: str = "px",
    tolerance: float = 2.0,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Summarise the rows of all images; the result is JSON-serialisable, with None for what is undefined.

    Each statistic is {"mean", "low", "high", "median", "n"}: over the `n` images where the score is defined, with the
    ends of a 95 % bootstrap interval of the mean, resampling what "grouped_by" says. "dice_nonempty" is over images
    whose reference is not empty. "mean" averages the classes within each image, then the images. "datasets" repeats
    all of it for each dataset where there are several, "modalities" for each modality; both leave out classes that
    nothing there annotates. "macro" is then the mean over modalities of their "mean", each counting once: "n" of them,
    the interval from resampling within each. "polyp" stands beside "mean" where the rows have `polyp_scores`.

    Args:
        rows: Dicts of `score_image`, each with "image", "patient" ("" where unknown), "dataset" and "modality".
        class_names: Names of all classes; index 0, the background, is left out.
        kind: What a row of scores is about: "image" or "volume".
        unit: Of HD95, ASSD and the tolerance.
        tolerance: Of NSD, as given to `score_image`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        UserError: there is no row.
    """
    if not rows:
        raise UserError(
            "nothing to score: no image has a reference mask of a foreground class; give masks to score against"
        )

    def part(some: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        head = {"kind": kind, "unit": unit, "tolerance": tolerance}
        table = build_table(some, classes=len(class_names), kind=kind)
        polyp = (
            {"polyp": summarise_polyp(some, table.group, resamples=resamples, seed=seed)} if CURVE in some[0] else {}
        )
        return head | _summarise_table(table, class_names[1:], resamples, seed, kind) | polyp

    summary = part(rows)
    for kinds, key in (("datasets", "dataset"), ("modalities", "modality")):
        names = sorted({row[key] for row in rows})
        if len(names) > 1:
            summary[kinds] = {name: _own_classes(part([row for row in rows if row[key] == name])) for name in names}
    if "modalities" in summary:
        tables = [
            build_table([row for row in rows if row["modality"] == name], classes=len(class_names), kind=kind)
            for name in summary["modalities"]
        ]
        summary["macro"] = _macro(tables, resamples, seed)
    return summary


def _own_classes(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"classes": {name: block for name, block in part["classes"].items() if block["images"]}}


def _macro(tables: Sequence[Table], resamples: int, seed: int) -> dict[str, Any]:
    """Per metric the mean of the tables' means over images (classes averaged within each), and its interval."""
    over_classes = [_mean(table.scores, axis=1) for table in tables]  # (N, M) each
    means = np.array([_mean(scores, axis=0) for scores in over_classes])
    # One seed for all would draw the same places of tables of one length
    resampled = [
        bootstrap_means(scores, table.group, resamples=resamples, seed=(seed, number))
        for number, (scores, table) in enumerate(zip(over_classes, tables, strict=True))
    ]
    low, high = percentiles(_whole_mean(resampled, means))
    return {
        metric: {"mean": plain_number(mean), "low": plain_number(low[m]), "high": plain_number(high[m]), "n": int(n)}
        for m, (metric, mean, n) in enumerate(
            zip(METRICS, _mean(means, axis=0), (~np.isnan(means)).sum(axis=0), strict=True)
        )
    }


def _whole_mean(resampled: Sequence[NDArray[np.float64]], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the modalities that have the metric; NaN where one of them could not be resampled."""
    stacked = np.stack(resampled)  # (K, R, M)
    defined = ~np.isnan(means)[:, None]  # (K, 1, M)
    n = np.maximum(defined.sum(axis=0), 1)
    return np.asarray(np.where(defined, stacked, 0.0).sum(axis=0) / n)


def _summarise_table(table: Table, names: Sequence[str], resamples: int, seed: int, kind: str) -> dict[str, Any]:
    N, K, M = table.scores.shape
    over_classes = _mean(table.scores, axis=1)  # (N, M)
    dice = table.scores[:, :, METRICS.index("dice")]
    dice_nonempty = np.where(table.empty_reference, np.nan, dice)  # (N, K)
    columns = np.concatenate([table.scores.reshape(N, K * M), dice_nonempty, over_classes], axis=1)
    low, high = bootstrap_interval(columns, table.group, resamples=resamples, seed=seed)
    statistics = [statistic_of(columns[:, v], low[v], high[v]) for v in range(columns.shape[1])]
    pooled = [_pooled_dice(table.counts[:, k]) for k in range(K)]
    return {
        "images": N,
        "groups": int(table.group.max()) + 1,
        "grouped_by": table.grouped_by,
        "note": _note(table, kind),
        "classes": {
            name: dict(zip(METRICS, statistics[k * M : (k + 1) * M], strict=True))
            | {"dice_nonempty": statistics[K * M + k], "pooled_dice": plain_number(pooled[k])}
            | _counts(table, k)
            for k, name in enumerate(names)
        },
        "mean": dict(zip(METRICS, statistics[K * M + K :], strict=True))
        | {"pooled_dice": plain_number(float(_mean(np.array(pooled), axis=0)))},
    }


def statistic_of(values: NDArray[np.float64], low: float, high: float) -> dict[str, Any]:
    """Mean, the ends of its interval, median and number of values (N,), of which NaN are left out."""
    values = values[~np.isnan(values)]
    mean, median = (float(values.mean()), float(np.median(values))) if len(values) else (None, None)
    return {"mean": mean, "low": plain_number(low), "high": plain_number(high), "median": median, "n": len(values)}


def _counts(table: Table, k: int) -> dict[str, Any]:
    reference, prediction = table.empty_reference[:, k], table.empty_prediction[:, k]
    empty = int(reference.sum())
    return {
        "images": int(table.annotated[:, k].sum()),
        "both_empty": int((reference & prediction).sum()),
        "empty_reference": empty,
        "empty_prediction": int(prediction.sum()),
        "false_positive_rate": int((reference & ~prediction).sum()) / empty if empty else None,
    }


def _pooled_dice(counts: NDArray[np.int64]) -> float:
    tp, fp, fn = counts.sum(axis=0).tolist()
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean without NaN; NaN where there is nothing else (np.nanmean warns there)."""
    n = (~np.isnan(values)).sum(axis=axis)
    return np.where(n > 0, np.nansum(values, axis=axis) / np.maximum(n, 1), np.nan)


def _note(table: Table, kind: str) -> str:
    """What limits a claim made from this table; empty if nothing."""
    sentences = []
    # Where nothing is to be found there is no Dice, or 0 for a false alarm: neither tells how well anything is found
    shown = (table.annotated & ~table.empty_reference).any(axis=1)
    n = len(np.unique(table.group[shown]))
    if n == 0:
        sentences.append("No reference mask shows a foreground class: there is no Dice to claim anything of.")
    elif n == 1:
        sentences.append(f"With 1 {table.grouped_by}, there is no interval and no claim to make.")
    elif n <= SMALL:
        # 1.96 / sqrt(n) times 15 points, a usual spread of the difference per image: 3 at 100 images, 7 at 20.
        sentences.append(
            f"Small set: with {n} {table.grouped_by}s, two models must usually differ by about "
            f"{30 / math.sqrt(n):.0f} Dice points for the difference to be seen."
        )
    if n > 1 and table.grouped_by == kind and table.without_patient:
        sentences.append(
            f"Patients are unknown, so the intervals are over {kind}s: too narrow if a patient has several {kind}s."
        )
    elif n > 1 and table.without_patient:
        sentences.append(
            f"The patient of {table.without_patient} {kind}s is unknown: each counts as a patient of its own, which "
            "makes the intervals too narrow if it is not."
        )
    return " ".join(sentences)
