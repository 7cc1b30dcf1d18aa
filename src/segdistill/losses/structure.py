"""The structure loss: pixels near a boundary count up to six times (F3Net, Wei et al. 2020; Polyp-PVT, KDAS)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .segmentation import annotated_logits, log_odds, one_hot

NEIGHBOURHOOD = 31  # pixels a side of the average that finds boundaries
EDGE = 5.0


def structure_loss(logits: Tensor, target: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """Edge-weighted BCE + edge-weighted IoU, weight 1 + 5 |avgpool_31(y) - y|, in fp32; 0 when no row is chosen.

    Per row and foreground class BCE = sum w bce / sum w and IoU = 1 - (sum w p y + 1) / (sum w (p + y - p y) + 1); then
    the mean over chosen rows and the classes that they annotate. With more than two classes p_k is softmax's and its
    logit log(p_k / (1 - p_k)) = z_k - logsumexp of the others, which at two classes is the sigmoid network's own.

    Args:
        logits: (B, C, H, W), background included.
        target: (B, H, W) class index; any value outside the chosen rows.
        rows: (B,) bool.
        classes: (B, C) bool, annotated.
    """
    with torch.autocast(logits.device.type, enabled=False):
        z, y, chosen = _one_against_rest(logits, target, rows, classes)
        weight = edge_weight(y)
        bce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
        weighted_bce = (weight * bce).sum((2, 3)) / weight.sum((2, 3))
        return _mean(weighted_bce + _weighted_iou(z, y, weight), chosen)


def released_structure_loss(logits: Tensor, target: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """`structure_loss` as KDAS and Polyp-PVT release it: the BCE is a plain mean, only the IoU feels the edges.

    Their `reduce='none'` is a true value, so the BCE is averaged before it is weighted (KDAS @ 647d51b).
    """
    with torch.autocast(logits.device.type, enabled=False):
        z, y, chosen = _one_against_rest(logits, target, rows, classes)
        bce = F.binary_cross_entropy_with_logits(z, y, reduction="none").mean((2, 3))
        return _mean(bce + _weighted_iou(z, y, edge_weight(y)), chosen)


def edge_weight(mask: Tensor) -> Tensor:
    """1 + 5 |avgpool_31(y) - y| of masks (B, K, H, W) in {0, 1}; outside the image the average sees zeros."""
    inside = _neighbours(_neighbours(mask, 2), 3)
    return 1 + EDGE * (inside / NEIGHBOURHOOD**2 - mask).abs()


def _neighbours(x: Tensor, dim: int) -> Tensor:
    """Sum of the 31 values around each along a dimension, zeros outside: two running sums' difference, exact."""
    before = NEIGHBOURHOOD // 2 + 1
    sides = [0, 0, 0, 0]
    sides[2 * (3 - dim) : 2 * (3 - dim) + 2] = before, before - 1
    running = F.pad(x, sides).cumsum(dim)
    size = x.shape[dim]
    return running.narrow(dim, NEIGHBOURHOOD, size) - running.narrow(dim, 0, size)


def _one_against_rest(logits: Tensor, target: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and masks (B, C - 1, H, W), and which of the (B, C - 1) count."""
    z = log_odds(annotated_logits(logits, classes))
    mask = one_hot(target, logits.shape[1])[:, 1:].float()
    chosen = rows[:, None] & classes[:, 1:]
    return z.masked_fill(~chosen[:, :, None, None], 0), mask.masked_fill(~chosen[:, :, None, None], 0), chosen


def _weighted_iou(z: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """(B, K) of (B, K, H, W)."""
    prob = z.sigmoid()
    both = (weight * prob * y).sum((2, 3))
    either = (weight * (prob + y)).sum((2, 3)) - both
    return 1 - (both + 1) / (either + 1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Over the chosen; 0 when there are none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
