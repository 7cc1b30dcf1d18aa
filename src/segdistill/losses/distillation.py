"""A student learns from a teacher's outputs or features; the teacher carries no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over pixels, fp32; logits (B, C, H, W). Hinton 2015."""
    with torch.autocast(student.device.type, enabled=False):
        wanted = (teacher.detach().float() / temperature).log_softmax(1)
        found = (student.float() / temperature).log_softmax(1)
        return temperature**2 * (wanted.exp() * (wanted - found)).sum(1).mean()


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over stages of mean (f_s - f_t)^2, fp32; the student's are projected to the teacher's shapes already.

    FitNets (Romero et al. 2015), with the hint at every stage.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([(s.float() - t.detach().float()).square().mean() for s, t in pairs]).mean()
