"""Losses between two predictions; the target carries no gradient."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .segmentation import NEVER, annotated_logits


def ramp_up(progress: float, start: float, end: float) -> float:
    """0 before `start`, exp(-5 (1 - t)^2) between, 1 from `end` on (Laine & Aila 2017)."""
    if progress >= end:
        return 1.0
    if progress < start:
        return 0.0
    return math.exp(-5 * ((end - progress) / (end - start)) ** 2)


def mean_squared_probability(logits: Tensor, target: Tensor, classes: Tensor) -> Tensor:
    """Mean over rows, classes and pixels of (softmax(z) - softmax(z'))^2; logits (B, C, H, W), classes (B, C) bool."""
    prob = annotated_logits(logits, classes).softmax(1)
    wanted = annotated_logits(target.detach(), classes).softmax(1)
    return (prob - wanted).square().mean()


def confident_cross_entropy(
    logits: Tensor, label: Tensor, confidence: Tensor, classes: Tensor, threshold: float
) -> Tensor:
    """Mean over all pixels of [confidence >= threshold] * -log p(label), in fp32 (FixMatch, Sohn et al. 2020).

    Args:
        logits: (B, C, H, W).
        label: (B, H, W) pseudo-labels, class indices.
        confidence: (B, H, W) probability of the pseudo-label.
        classes: (B, C, H, W) bool, annotated, or (B, C, 1, 1); the others get no probability and no gradient.
        threshold: Below it a pixel gets no loss.
    """
    pixels = F.cross_entropy(logits.float().masked_fill(~classes, NEVER), label, reduction="none")
    return (pixels * (confidence >= threshold)).mean()
