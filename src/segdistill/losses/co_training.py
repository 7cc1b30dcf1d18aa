"""Two networks that teach each other, without labels; the other's prediction carries no gradient.

KnowSAM (Huang et al., TMI 2025). `released_*` compute what its public code does (5ceef5a), faults included.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .segmentation import annotated_logits, label_map


def entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean over rows and pixels of H(p) / log C, fp32, in [0, 1]; logits (B, C, H, W), classes (B, C) bool."""
    log_p = annotated_logits(logits, classes).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() / math.log(logits.shape[1])


def cross_consistency(logits: Tensor, other: Tensor, classes: Tensor) -> Tensor:
    """Mean over rows, classes and pixels of BCE(p_c, q_c), q the other's probability; fp32; logits (B, C, H, W)."""
    z = annotated_logits(logits, classes)
    q = annotated_logits(other.detach(), classes).softmax(1)
    return -(q * z.log_softmax(1) + (1 - q) * log_complement(z)).mean()


def cross_pseudo_labels(logits: Tensor, other: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy with the other's argmax as label, mean over rows and pixels (CPS, Chen et al., CVPR 2021)."""
    label = label_map(annotated_logits(other.detach(), classes))
    return F.cross_entropy(annotated_logits(logits, classes), label)


def log_complement(z: Tensor) -> Tensor:
    """log(1 - softmax(z)) per class without cancellation: the others' logsumexp less that of all; (B, C, H, W)."""
    count = z.shape[1]
    others = [z[:, [k for k in range(count) if k != c]].logsumexp(1) for c in range(count)]
    return torch.stack(others, 1) - z.logsumexp(1, keepdim=True)


def released_consistency(logits: Tensor, other: Tensor, classes: Tensor) -> Tensor:
    """BCE of the last class alone: `loss_diff1`, as the U-Net learns from the V-Net."""
    with torch.autocast(logits.device.type, enabled=False):  # under CUDA's torch refuses this function
        p, q = logits.float().softmax(1)[:, -1], other.detach().float().softmax(1)[:, -1]
        return F.binary_cross_entropy(p.clamp(1e-8, 1 - 1e-7), q)


def released_inert_consistency(logits: Tensor, other: Tensor, classes: Tensor) -> Tensor:
    """`loss_diff2`: detached on the wrong side, so the V-Net learns nothing from it."""
    return released_consistency(other.detach(), logits, classes)


def released_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean of H(p) / log 2, whatever the number of classes."""
    p = logits.float().softmax(1)
    return -(p * (p + 1e-6).log()).sum(1).mean() / math.log(2)
