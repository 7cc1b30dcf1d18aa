"""Overlap of one class: pixel counts and the ratios made of them.

Where exactly one of prediction and reference is empty, precision or recall is 0/0. It counts as 0, as in scikit-learn
and torchmetrics: so every miss stays in every mean, and Dice remains the harmonic mean of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Counts:
    """Pixels of one class: true positive, false positive, false negative, true negative."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def empty_reference(self) -> bool:
        """The reference has no pixel of the class."""
        return self.tp + self.fn == 0

    @property
    def empty_prediction(self) -> bool:
        """The prediction has no pixel of the class."""
        return self.tp + self.fp == 0


def count(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Counts:
    """The four counts of two masks of one shape."""
    tp = int(np.count_nonzero(prediction & reference))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(reference)) - tp
    return Counts(tp, fp, fn, reference.size - tp - fp - fn)


def overlap_scores(c: Counts) -> dict[str, float]:
    """Dice, IoU, precision, recall, specificity. Both masks empty: NaN but for specificity, which says that they agree.

    Specificity = tn / (tn + fp) is NaN where the reference fills the image.
    """
    both_empty = c.empty_reference and c.empty_prediction

    def ratio(part: int, whole: int) -> float:
        return math.nan if both_empty else part / whole if whole else 0.0

    return {
        "dice": ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn),
        "iou": ratio(c.tp, c.tp + c.fp + c.fn),
        "precision": ratio(c.tp, c.tp + c.fp),
        "recall": ratio(c.tp, c.tp + c.fn),
        "specificity": c.tn / (c.tn + c.fp) if c.tn + c.fp else math.nan,
    }
