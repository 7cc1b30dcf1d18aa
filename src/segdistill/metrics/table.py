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
    patients_known: bool


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
    patients: list[tuple[str, str]] = []
    for row in rows:
        key = (row["dataset"], row["image"])
        if key not in images:
            images[key] = len(images)
            patients.append((row["dataset"], row["patient"]))

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

    group, known, by_patient = grouping(patients)
    return Table(
        scores=scores,
        counts=counts,
        annotated=annotated,
        empty_reference=empty_reference,
        empty_prediction=empty_prediction,
        group=group,
        grouped_by="patient" if by_patient else kind,
        patients_known=known,
    )


def grouping(patients: Sequence[tuple[str, str]]) -> tuple[NDArray[np.intp], bool, bool]:
    """What the bootstrap draws, from the (dataset, patient) of each image, "" where unknown.

    Returns:
        (N,) indices 0..G-1, whether all patients are known, whether the indices are of patients: they are of images
        where a patient is unknown or each has one image.
    """
    known = all(patient for _, patient in patients)
    order = {patient: g for g, patient in enumerate(dict.fromkeys(patients))}
    by_patient = known and len(order) < len(patients)
    group = np.array([order[p] for p in patients]) if by_patient else np.arange(len(patients))
    return group, known, by_patient
