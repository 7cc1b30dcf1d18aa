"""A student learns from a teacher's outputs or features; the teacher carries no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over pixels, fp32; logits (B, C, H, W). Hinton 2015.

    A weight (B, H, W) multiplies the pixels; the mean is still over all of them.
    """
    with torch.autocast(student.device.type, enabled=False):
        wanted = (teacher.detach().float() / temperature).log_softmax(1)
        found = (student.float() / temperature).log_softmax(1)
        pixels = (wanted.exp() * (wanted - found)).sum(1)
        return temperature**2 * (pixels if weight is None else pixels * weight).mean()


def released_pair_kl(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """KnowSAM's released KD: channels reshaped to pairs, so beyond two classes blind to shifts between the pairs."""
    pairs = [z.permute(0, 2, 3, 1).reshape(-1, 2, 1, 1) for z in (student, teacher)]
    return distillation_kl(pairs[0], pairs[1], temperature)


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over stages of mean (f_s - f_t)^2, fp32; the student's are projected to the teacher's shapes already.

    FitNets (Romero et al. 2015), with the hint at every stage.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([(s.float() - t.detach().float()).square().mean() for s, t in pairs]).mean()
