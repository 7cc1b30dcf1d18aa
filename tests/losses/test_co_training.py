"""Losses between co-trained networks: hand-made cases, float64, gradients, and KnowSAM's released numbers."""

import math

import numpy as np
import pytest
import torch
from reference.fill import make_input
from torch.overrides import TorchFunctionMode

from segdistill.losses.co_training import (
    cross_consistency,
    cross_pseudo_labels,
    entropy,
    log_complement,
    released_consistency,
    released_entropy,
    released_inert_consistency,
)
from segdistill.losses.consistency import ramp_up
from segdistill.losses.distillation import distillation_kl, released_pair_kl
from segdistill.losses.segmentation import soft_dice

# reference/knowsam_losses.json: KnowSAM @ 5ceef5a, torch 2.13.0 CPU float32; inputs by fill.py as said there
RELEASED = {"dice": 0.6388635635, "ld1": 0.6839053035, "ld2": 0.6867548227, "kd2": 0.5019559860, "kd4": 0.7618599535}


def logits(seed, classes=4, grad=False):
    return torch.from_numpy(make_input(seed, (2, classes, 32, 32))).requires_grad_(grad)


def every(z):
    return torch.ones(z.shape[:2], dtype=torch.bool)


def test_the_released_values():
    a, b = logits(31), logits(32)
    target = torch.from_numpy(np.random.RandomState(33).randint(0, 4, (2, 32, 32)))
    found = {
        "dice": soft_dice(a, target, torch.ones(2, dtype=torch.bool)),
        "ld1": released_consistency(a, b, every(a)),
        "ld2": released_inert_consistency(a, b, every(a)),
        "kd2": released_pair_kl(a, b, 10),
        "kd4": distillation_kl(a, b, 10),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(RELEASED[name], rel=1e-4), name


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_log_complement_in_float64(classes):
    z = 4 * logits(1, classes)
    exact = torch.log1p(-z.double().softmax(1))
    torch.testing.assert_close(log_complement(z).double(), exact, rtol=1e-4, atol=1e-5)
    sure = torch.zeros(1, classes, 1, 1)
    sure[:, 0] = 60.0  # 1 - p is 0 in float32
    assert log_complement(sure)[0, 0, 0, 0].item() == pytest.approx(-60 + math.log(classes - 1), abs=1e-3)


@pytest.mark.parametrize("loss", [cross_consistency, cross_pseudo_labels])
def test_one_learns_and_the_other_does_not(loss):
    a, b = logits(1, grad=True), logits(2, grad=True)
    loss(a, b, every(a)).backward()
    assert a.grad.abs().max() > 0
    assert b.grad is None


def test_consistency_is_the_mean_binary_cross_entropy():
    a, b = logits(1), logits(2)
    expected = torch.nn.functional.binary_cross_entropy(a.double().softmax(1), b.double().softmax(1))
    assert cross_consistency(a, b, every(a)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_consistency_sees_every_class_and_the_released_only_the_last():
    a = logits(1)
    b = a.clone()
    b[:, [0, 1]] = b[:, [1, 0]]  # the first two classes change places
    gap = cross_consistency(a, b, every(a)) - cross_consistency(a, a, every(a))
    assert gap > 0.01
    assert released_consistency(a, b, every(a)).item() == pytest.approx(released_consistency(a, a, every(a)).item())


def test_the_released_consistency_of_the_vnet_has_no_gradient():
    a, b = logits(1, grad=True), logits(2, grad=True)
    loss = released_inert_consistency(a, b, every(a))
    assert not loss.requires_grad or torch.autograd.grad(loss, a, allow_unused=True)[0] is None


class AsCuda(TorchFunctionMode):
    """Refuses under autocast what CUDA's refuses and the CPU's does not (BANNED in torch's autocast_mode.cpp)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.binary_cross_entropy and torch.is_autocast_enabled("cpu"):
            raise RuntimeError("binary_cross_entropy is unsafe to autocast")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "loss", [cross_consistency, cross_pseudo_labels, released_consistency, released_inert_consistency]
)
def test_autocast_of_a_gpu_takes_every_loss(loss):
    a, b = logits(1).bfloat16(), logits(2).bfloat16()
    with AsCuda(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(a, b, every(a))
    assert found.item() == pytest.approx(loss(a.float(), b.float(), every(a)).item(), rel=1e-3)


def test_a_sure_pair_stays_finite():
    a = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    loss = cross_consistency(a, -a.detach(), every(a))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_entropy_is_between_0_and_1(classes):
    flat = torch.zeros(2, classes, 4, 4)
    assert entropy(flat, every(flat)).item() == pytest.approx(1)
    assert released_entropy(flat, every(flat)).item() == pytest.approx(math.log2(classes), abs=1e-4)
    assert entropy(100 * logits(1, classes).sign() * torch.arange(classes).view(1, -1, 1, 1), every(flat)) < 0.2


def test_what_a_row_does_not_annotate_gets_no_gradient():
    known = torch.tensor([[True, True, False, True]]).expand(2, -1)
    for loss in (cross_consistency, cross_pseudo_labels):
        a = logits(1, grad=True)
        value = loss(a, logits(2), known)
        value.backward()
        assert torch.isfinite(value)
        assert a.grad[:, 2].abs().max() == 0
    a = logits(1, grad=True)
    entropy(a, known).backward()
    assert a.grad[:, 2].abs().max() == 0


def test_pairs_are_blind_to_shifts_between_them():
    """The released KD at four classes: what is added to the first two channels alike costs nothing."""
    student, teacher = logits(1), logits(2)
    shifted = teacher.clone()
    shifted[:, :2] += 5
    assert released_pair_kl(student, shifted, 10).item() == pytest.approx(released_pair_kl(student, teacher, 10).item())
    assert distillation_kl(student, shifted, 10) > 2 * distillation_kl(student, teacher, 10)


def test_weighted_pixels_of_the_distillation():
    student, teacher = logits(1), logits(2)
    weight = torch.zeros(2, 32, 32)
    weight[0] = 1
    expected = distillation_kl(student[:1], teacher[:1], 3.0) / 2
    assert distillation_kl(student, teacher, 3.0, weight).item() == pytest.approx(expected.item(), rel=1e-5)


def test_ramps():
    assert [ramp_up(t, 0.2, 0.4) for t in (0.1, 0.4, 1.0)] == [0, 1, 1]
    assert ramp_up(0.2, 0.2, 0.4) == pytest.approx(math.exp(-5))
    assert ramp_up(0.0, 0.0, 0.0) == 1
    assert ramp_up(0.5, 0.0, 1.0) == pytest.approx(math.exp(-5 * 0.25))  # published lambda
