"""Oracles: hand-sized cases, and a loop over the bins with masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segdistill.metrics.calibration import Calibration


def binary(foreground):
    foreground = np.array(foreground, dtype=np.float32)
    return np.stack([1 - foreground, foreground])


def ece_oracle(probabilities, reference, bins):
    confidence, right = probabilities.max(0), probabilities.argmax(0) == reference
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_hand_sized():
    calibration = Calibration(bins=10)
    # Confidences .9 .9 .9 .9 (three right) and .7 .7 (one right): gaps .15 and .2.
    calibration.update(binary([[0.9, 0.9, 0.1], [0.1, 0.7, 0.3]]), np.array([[1, 1, 0], [1, 1, 1]]))
    assert calibration.ece == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.2, abs=1e-6)
    low, high = calibration.table()
    assert low == {"confidence": pytest.approx(0.7), "accuracy": 0.5, "count": 2}
    assert high == {"confidence": pytest.approx(0.9), "accuracy": 0.75, "count": 4}


def test_images_accumulate_to_one_pool_of_pixels():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], (4, 16, 20)).transpose(0, 3, 1, 2)
    reference = generator.integers(0, 3, (4, 16, 20))
    calibration = Calibration()
    for image, truth in zip(probabilities, reference, strict=True):
        calibration.update(image, truth)
    pooled = probabilities.transpose(1, 0, 2, 3)
    assert calibration.ece == pytest.approx(ece_oracle(pooled, reference, 15))
    assert sum(row["count"] for row in calibration.table()) == reference.size


def test_calibrated_and_overconfident():
    generator = np.random.default_rng(0)
    truth = (generator.random((300, 300)) < 0.8).astype(int)
    honest, proud = Calibration(), Calibration()
    honest.update(binary(np.full((300, 300), 0.8)), truth)
    proud.update(binary(np.full((300, 300), 1.0)), truth)
    assert honest.ece == pytest.approx(0, abs=0.01)
    assert proud.ece == pytest.approx(0.2, abs=0.01)


def test_a_bin_holds_its_upper_end():
    calibration = Calibration(bins=4)
    calibration.update(binary([[0.5, 0.625, 0.75, 1.0]]), np.array([[1, 1, 1, 1]]))
    assert [row["confidence"] for row in calibration.table()] == [0.5, (0.625 + 0.75) / 2, 1.0]


def test_nothing_seen():
    calibration = Calibration()
    assert math.isnan(calibration.ece)
    assert calibration.table() == []


@pytest.mark.parametrize("value", [-3.0, 4.0, math.nan])
def test_logits_and_nan_are_refused(value):
    with pytest.raises(ValueError, match="logits or NaN"):
        Calibration().update(np.full((2, 3, 3), value), np.zeros((3, 3), int))


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="do not fit"):
        Calibration().update(np.full((2, 3, 3), 0.5), np.zeros((3, 4), int))
