"""Where a student fails: its Dice by the size of what the reference shows, and by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import bootstrap_interval, plain_number
from .summary import statistic_of
from .table import grouping

RESAMPLES = 2000  # of the bootstrap
FEWEST = 6  # images of one class; of fewer, thirds say nothing


@dataclass(frozen=True)
class SizeThird:
    """The images whose reference region is of one size."""

    low: float  # share of the image that the reference covers: the least and the most here
    high: float
    dice: Mapping[str, Any]  # as a statistic of `summarise`
    missed: int  # images in which nothing was found


@dataclass(frozen=True)
class Patient:
    """The images of one patient."""

    dataset: str
    name: str
    images: int  # that have a Dice
    dice: float  # mean over them
    lowest: float
    worst: str  # name of the image with the lowest Dice


def by_size(rows: Sequence[Mapping[str, Any]]) -> list[SizeThird]:
    """Dice in thirds of the images of a class, by the share of the image that the reference covers; small first.

    Equal shares stay together, so thirds may differ in number and be fewer. Empty references belong to none. Intervals
    are 95 % bootstraps over patients, over images where patients are unknown. Empty with fewer than FEWEST images.

    Args:
        rows: Dicts of `score_image` of one class, each with "image", "patient" and "dataset".
    """
    rows = [row for row in rows if row["tp"] + row["fn"] > 0]
    if len(rows) < FEWEST:
        return []
    share = np.array([reference_share(row) for row in rows])
    dice = np.array([row["dice"] for row in rows], dtype=np.float64)
    found = np.array([row["tp"] + row["fp"] > 0 for row in rows])
    group, _ = grouping([(row["dataset"], row["patient"], row["image"]) for row in rows])
    third = np.searchsorted(np.quantile(share, (1 / 3, 2 / 3)), share)  # a share at an edge belongs below it
    thirds = []
    for number in np.unique(third):
        here = third == number
        own = np.unique(group[here], return_inverse=True)[1]
        low, high = bootstrap_interval(dice[here, None], own, resamples=RESAMPLES, seed=0)
        statistic = statistic_of(dice[here], low[0], high[0])
        thirds.append(
            SizeThird(float(share[here].min()), float(share[here].max()), statistic, int((~found[here]).sum()))
        )
    return thirds


def reference_share(row: Mapping[str, Any]) -> float:
    """The share of the image that the reference of the row's class covers."""
    return float((row["tp"] + row["fn"]) / (row["tp"] + row["fp"] + row["fn"] + row["tn"]))


def by_patient(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Patient], dict[str, Any]]:
    """Each patient's mean Dice, the lowest first, and the statistic over patients, each counting once.

    Classes are averaged within each image, images within each patient. Nothing where a patient is unknown or each has
    one image: the images then say the same.

    Args:
        rows: Dicts of `score_image` of all classes, each with "image", "shown", "patient" and "dataset".
    """
    images: dict[tuple[str, str], list[float]] = {}  # (patient's data set and name) and classes' Dice of each image
    about = {(row["dataset"], row["image"]): row for row in rows}
    for row in rows:
        if not math.isnan(row["dice"]):
            images.setdefault((row["dataset"], row["image"]), []).append(row["dice"])
    _, several = grouping([(row["dataset"], row["patient"], row["image"]) for row in about.values()])
    if not several:
        return [], {}
    patients: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for key, values in images.items():
        row = about[key]
        if row["patient"]:
            patients.setdefault((row["dataset"], row["patient"]), []).append((float(np.mean(values)), row["shown"]))
    table = [
        Patient(*key, len(own), float(np.mean([dice for dice, _ in own])), *min(own)) for key, own in patients.items()
    ]
    return sorted(table, key=lambda one: (one.dice, one.dataset, one.name)), _over(table)


def _over(patients: Sequence[Patient]) -> dict[str, Any]:
    """The statistic over patients."""
    means: NDArray[np.float64] = np.array([one.dice for one in patients])
    if not len(means):
        return {}
    low, high = bootstrap_interval(means[:, None], np.arange(len(means)), resamples=RESAMPLES, seed=0)
    return statistic_of(means, low[0], high[0]) | {"lowest": plain_number(means.min())}
