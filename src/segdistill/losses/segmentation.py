"""Supervised segmentation losses over the labelled rows of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_EPSILON = 1e-5  # KnowSAM's released code: 1e-10, too small for bf16 inputs and empty classes
NEVER = -1e4  # a logit that leaves a class no probability, finite so that its gradient is 0 and not NaN


def annotated_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """fp32 logits (B, C, H, W) in which classes (B, C) a row does not annotate have no probability, no gradient."""
    return logits.float().masked_fill(~classes[:, :, None, None], NEVER)


def label_map(logits: Tensor) -> Tensor:
    """Most likely class (B, H, W) of (B, C, H, W); the first of equals. As argmax, which is slow over few values."""
    return logits.max(1).indices


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(B, H, W) class index -> (B, classes, H, W) bool. Torch's own reads the range of the values: a host sync."""
    return target[:, None] == torch.arange(classes, device=target.device)[:, None, None]


def log_odds(logits: Tensor) -> Tensor:
    """z_k - log sum_{j != k} exp z_j of the foreground classes: (B, C, H, W) -> (B, C - 1, H, W).

    Its sigmoid is the class's softmax probability.
    """
    count = logits.shape[1]
    others = [torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1) for k in range(1, count)]
    return logits[:, 1:] - torch.stack(others, 1)


def cross_entropy(logits: Tensor, target: Tensor, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean -log p over the pixels of the chosen rows, weighted if asked for; 0 when there are none.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) class index; any value outside the chosen rows.
        rows: (B,) bool.
        weight: (B, H, W) of the pixels, from 0.
    """
    chosen = rows[:, None, None].float()
    safe = target.masked_fill(~rows[:, None, None], 0)
    pixels = F.cross_entropy(logits, safe, reduction="none") * chosen
    if weight is not None:
        return (pixels * weight).sum() / (chosen * weight).sum().clamp(min=1)
    return pixels.sum() / (chosen.sum() * target[0].numel()).clamp(min=1)


def soft_dice(logits: Tensor, target: Tensor, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over classes of 1 - (2 sum p y + eps) / (sum p^2 + sum y^2 + eps), background included.

    The sums are pooled over the chosen rows (KnowSAM's definition, after Milletari et al. 2016). A class that is
    neither predicted nor present costs nothing.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) class index; any value outside the chosen rows.
        rows: (B,) bool.
        weight: (B, H, W) of the pixels in every sum, from 0.
    """
    chosen = rows[:, None, None]
    prob = logits.softmax(1) * chosen[:, None]
    truth = one_hot(target, logits.shape[1]) & chosen[:, None]
    over = (0, 2, 3)
    overlap, total = prob * truth, prob.square() + truth
    if weight is not None:
        overlap, total = overlap * weight[:, None], total * weight[:, None]
    overlap, total = overlap.sum(over), total.sum(over)
    return 1 - ((2 * overlap + DICE_EPSILON) / (total + DICE_EPSILON)).mean()


def dice_cross_entropy(
    logits: Tensor, target: Tensor, rows: Tensor, classes: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """S of the KnowSAM specification: cross-entropy + soft Dice, in fp32, over the chosen rows (B,) and classes (B, C).

    A weight (B, H, W) from 0 counts pixels more or less, as where a pseudo-label is not to be trusted.

    Rows are weighted instead of selected: no host sync, and a shape that does not depend on the data.
    """
    with torch.autocast(logits.device.type, enabled=False):
        known = annotated_logits(logits, classes)
        return cross_entropy(known, target, rows, weight) + soft_dice(known, target, rows, weight)
