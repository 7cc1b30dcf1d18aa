"""KDAS (Trinh et al., ICME 2024): the student's maps attend as the teacher's do, and share their symmetric part.

Maps x are logits (B, K, h, w) at the network's own grid (1/8 of the image), K foreground classes; each class is a map
of its own. u = tanh(x / 2) = 2 sigmoid(x) - 1 bounds them: on raw logits the temperature-scaled KL is 113 for a disk
that is 20 pixels off, where the cross-entropy is .19. Everything in fp32; the teacher carries no gradient.

The released functions stand beside ours. Their KL terms are constants in the student: zero gradient, and NaN besides.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_ROW = 1e-3  # norm under which a row of the map is no direction: it bounds the gradient at an empty row


def row_attention(maps: Tensor, temperature: float) -> Tensor:
    """Log of A(x) = softmax(sqrt(w) u^ u^T / T), u^ = rows of u at unit length: (B, K, h, w) -> (B, K, h, h).

    A token is one row of the grid, so h and w may differ.
    """
    u = F.normalize((maps.float() / 2).tanh(), dim=-1, eps=SMALLEST_ROW)
    return (math.sqrt(maps.shape[-1]) / temperature * u @ u.transpose(-1, -2)).log_softmax(-1)


def attention_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """L_AT of one pair of maps: T^2 KL(A(sg t) || A(s)), mean over rows of the grid, classes and images."""
    with torch.autocast(student.device.type, enabled=False):
        wanted = row_attention(teacher.detach(), temperature)
        found = row_attention(student, temperature)
        return temperature**2 * (wanted.exp() * (wanted - found)).sum(-1).mean()


def symmetric_part(maps: Tensor) -> Tensor:
    """G(x) = (u + u^T) / 2; a grid that is not square is first averaged to a square of its shorter side.

    So transposing keeps its meaning, which is to swap relative heights with relative widths.
    """
    u = (maps.float() / 2).tanh()
    side = min(u.shape[-2:])
    if u.shape[-2] != u.shape[-1]:
        u = F.adaptive_avg_pool2d(u, side)
    return (u + u.transpose(-1, -2)) / 2


def symmetric_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_SGM of one pair of maps: mean (G(s) - G(sg t))^2. Antisymmetric differences cost nothing, as published."""
    with torch.autocast(student.device.type, enabled=False):
        return (symmetric_part(student) - symmetric_part(teacher.detach())).square().mean()


def released_teacher_attention(maps: Tensor, temperature: float) -> Tensor:
    """What the released code calls the teacher's attention: softmax(x x^T / sqrt(w)) x / T, on the upsampled logits."""
    x = maps.float()
    return F.scaled_dot_product_attention(x, x, x) / temperature


def released_attention_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The released KL of one pair of maps (B, 1, H, W); in the student a constant.

    Its student is softmax(s) / T over a single channel, 1 / T everywhere, hence **no gradient**; torch's KL divergence
    of the teacher's negative "probabilities" is NaN. (KDAS @ 647d51b, `train_kd_paper.py`.)
    """
    constant = student.float().softmax(1) / temperature
    target = released_teacher_attention(teacher.detach(), temperature)
    return temperature**2 * F.kl_div(constant, target, reduction="none").mean()


def released_symmetric_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The released SGM: mean ((s + s^T) - (t + t^T))^2 on the upsampled raw logits of P1, square images only."""
    s, t = student.float(), teacher.detach().float()
    return ((s + s.transpose(-1, -2)) - (t + t.transpose(-1, -2))).square().mean()
