"""The rows of `score_image`, with the caller's names, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scores import METRICS


@dataclass(frozen=True)
class Table:
    """N images, K foreground classes, M metrics. Where an image has no row of a class, all is NaN, 0 and False."""

    scores: NDArray[np.float64]  # (N, K, M) in the order of METRICS
    counts: NDArray[np.int64]  # (N, K, 3): tp, fp, fn
    annotated: NDArray[np.bool_]  # (N, K)
    empty_reference: NDArray[np.bool_]  # (N, K)
    empty_prediction: NDArray[np.bool_]  # (N, K)
    group: NDArray[np.intp]  # (N,) 0..G-1: what the bootstrap draws
    grouped_by: str  # "patient", or what a row of the table is: "image", "volume"
    without_patient: int  # images whose patient is unknown


def build_table(rows: Sequence[Mapping[str, Any]], *, classes: int, kind: str = "image") -> Table:
    """Arrays of all rows. An image is known by (dataset, image), a patient by (dataset, patient).

    Args:
        rows: Dicts of `score_image`, each with "image", "patient" ("" where unknown) and "dataset".
        classes: Number of classes, background included.
        kind: What was scored: "image" or "volume".

    Raises:
        ValueError: two rows for one class of one image.
    """
    images: dict[tuple[str, str], int] = {}
    about: list[tuple[str, str, str]] = []
    for row in rows:
        key = (row["dataset"], row["image"])
        if key not in images:
            images[key] = len(images)
            about.append((row["dataset"], row["patient"], row["image"]))

    shape = len(images), classes - 1
    scores = np.full((*shape, len(METRICS)), np.nan)
    counts = np.zeros((*shape, 3), dtype=np.int64)
    annotated, empty_reference, empty_prediction = np.zeros((3, *shape), dtype=np.bool_)
    for row in rows:
        at = images[row["dataset"], row["image"]], row["class"] - 1
        if annotated[at]:
            raise ValueError(f"two rows for class {row['class']} of image {row['image']!r} in {row['dataset']!r}")
        annotated[at] = True
        scores[at] = [row[metric] for metric in METRICS]
        counts[at] = row["tp"], row["fp"], row["fn"]
        empty_reference[at], empty_prediction[at] = row["empty_reference"], row["empty_prediction"]

    group, by_patient = grouping(about)
    return Table(
        scores=scores,
        counts=counts,
        annotated=annotated,
        empty_reference=empty_reference,
        empty_prediction=empty_prediction,
        group=group,
        grouped_by="patient" if by_patient else kind,
        without_patient=sum(not patient for _, patient, _ in about),
    )


def grouping(images: Sequence[tuple[str, str, str]]) -> tuple[NDArray[np.intp], bool]:
    """What the bootstrap draws: patients; an image whose patient is unknown stands for itself.

    Args:
        images: The (data set, patient, name) of each image, "" where the patient is unknown; one may be there again.

    Returns:
        (N,) indices 0..G-1, and whether a patient has several images, so that the draws are of patients.
    """
    drawn = [(dataset, patient, "" if patient else name) for dataset, patient, name in images]
    order = {key: g for g, key in enumerate(dict.fromkeys(drawn))}
    return np.array([order[key] for key in drawn], dtype=np.intp), len(order) < len({(d, n) for d, _, n in images})
