"""Does a probability of 0.8 mean right in 80 % of the pixels?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class Calibration:
    """Confidence of the predicted class against its accuracy over the pixels of all images, in equal-width bins.

    Guo 2017 (after Naeini 2015): bin m holds the confidences in ((m - 1) / bins, m / bins].
    """

    def __init__(self, bins: int = 15) -> None:
        self._count = np.zeros(bins)
        self._confidence = np.zeros(bins)  # sums
        self._correct = np.zeros(bins)

    def update(self, probabilities: NDArray[np.floating], reference: NDArray[np.integer]) -> None:
        """Add an image: probabilities (C, H, W), class indices (H, W).

        Raises:
            ValueError: the shapes do not fit, or these are no probabilities.
        """
        if probabilities.shape[1:] != reference.shape:
            raise ValueError(f"probabilities {probabilities.shape} do not fit the reference {reference.shape}")
        confidence = probabilities.max(axis=0).ravel().astype(np.float64)
        if not (confidence.min() >= 0 and confidence.max() <= 1.001):  # bf16 rounds; NaN fails both
            raise ValueError("calibration needs probabilities in [0, 1]; got logits or NaN")
        correct = (probabilities.argmax(axis=0) == reference).ravel()
        bins = len(self._count)
        place = np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)
        self._count += np.bincount(place, minlength=bins)
        self._confidence += np.bincount(place, weights=confidence, minlength=bins)
        self._correct += np.bincount(place, weights=correct, minlength=bins)

    def merge(self, other: Calibration) -> None:
        """Add the images of another one with as many bins."""
        self._count += other._count
        self._confidence += other._confidence
        self._correct += other._correct

    @property
    def ece(self) -> float:
        """Expected calibration error: the gap |accuracy - confidence|, averaged over pixels. NaN without pixels."""
        pixels = self._count.sum()
        return float(np.abs(self._correct - self._confidence).sum() / pixels) if pixels else math.nan

    def table(self) -> list[dict[str, float]]:
        """The bins that hold pixels, by rising confidence: mean "confidence", "accuracy", "count"."""
        return [
            {"confidence": float(confidence / n), "accuracy": float(correct / n), "count": int(n)}
            for n, confidence, correct in zip(self._count, self._confidence, self._correct, strict=True)
            if n
        ]
