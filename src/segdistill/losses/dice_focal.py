"""ESP-MedSAM's losses: masks, patch prompt, embedding. Labelled rows and annotated classes only.

The authors released the embedding loss alone; the others are inferred from their sister paper UN-SAM and from commented
lines, with one class. Here each foreground class is scored by its log-odds in the softmax, which for two classes is the
paper's sigmoid. Dice is per row, so that in a mixed batch no modality's large objects hide another's small ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .segmentation import annotated_logits, log_odds, one_hot

DICE_WEIGHT = 0.8
FOCAL_WEIGHT = 0.2
FOCAL_SCALE = 0.8
DICE_SMOOTH = 1.0  # of the released evaluation code's Dice
PATCH = 32  # pixels


def dice_focal(logits: Tensor, target: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """L_seg = 0.8 Dice + 0.2 focal, the mean over chosen rows and their annotated foreground classes; 0 without any.

    Dice = 1 - (2 sum p y + 1) / (sum p + sum y + 1); focal = 0.8 (1 - exp(-BCE))^2 BCE per pixel. In fp32.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) class index; any value outside the chosen rows.
        rows: (B,) bool.
        classes: (B, C) bool, annotated.
    """
    with torch.autocast(logits.device.type, enabled=False):
        odds = log_odds(annotated_logits(logits, classes))
        y = _one_hot(target, rows, logits.shape[1])
        p = odds.sigmoid()
        dice = 1 - (2 * (p * y).sum((2, 3)) + DICE_SMOOTH) / ((p + y).sum((2, 3)) + DICE_SMOOTH)
        bce = F.binary_cross_entropy_with_logits(odds, y, reduction="none")
        focal = (FOCAL_SCALE * (-torch.expm1(-bce)).square() * bce).mean((2, 3))
        return _mean(DICE_WEIGHT * dice + FOCAL_WEIGHT * focal, rows, classes)


def patch_cross_entropy(patch: Tensor, target: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """L_patch = BCE(sigmoid(P), maxpool_32(y)), the mean as in `dice_focal`.

    Args:
        patch: (B, C - 1, ceil(H / 32), ceil(W / 32)) logits, per foreground class: does the patch hold any of it?
        target: (B, H, W) class index; any value outside the chosen rows.
        rows: (B,) bool.
        classes: (B, C) bool, annotated.
    """
    with torch.autocast(patch.device.type, enabled=False):
        y = F.max_pool2d(_one_hot(target, rows, classes.shape[1]), PATCH, ceil_mode=True)
        bce = F.binary_cross_entropy_with_logits(patch.float(), y, reduction="none").mean((2, 3))
        return _mean(bce, rows, classes)


def embedding_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """L_KD = mean (h_student - sg h_teacher)^2 over all rows, in fp32; embeddings of equal shape."""
    return (student.float() - teacher.detach().float()).square().mean()


def _one_hot(target: Tensor, rows: Tensor, classes: int) -> Tensor:
    """The foreground of a target, (B, C - 1, H, W) float; 0 outside the chosen rows."""
    return (one_hot(target, classes)[:, 1:] & rows[:, None, None, None]).float()


def _mean(values: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """Over the chosen rows and annotated foreground classes of (B, C - 1)."""
    weight = (rows[:, None] & classes[:, 1:]).float()
    return (values * weight).sum() / weight.sum().clamp(min=1)
