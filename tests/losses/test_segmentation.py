"""Losses against reference numbers, hand-sized cases and a second formulation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdistill.losses.segmentation import annotated_logits, cross_entropy, dice_cross_entropy, log_odds, soft_dice

ALL = torch.ones(3, dtype=torch.bool)
EVERY = torch.ones(3, 4, dtype=torch.bool)


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(3, 4, 9, 7), torch.randint(0, 4, (3, 9, 7))


def test_the_sigmoid_of_the_log_odds_is_the_softmax(case):
    logits, _ = case
    torch.testing.assert_close(log_odds(logits).sigmoid(), logits.softmax(1)[:, 1:])


def test_cross_entropy_is_torchs_on_the_chosen_rows(case):
    logits, target = case
    rows = torch.tensor([True, False, True])
    torch.testing.assert_close(cross_entropy(logits, target, rows), F.cross_entropy(logits[rows], target[rows]))


def test_soft_dice_is_the_formula(case):
    logits, target = case
    prob, losses = logits.softmax(1), []
    for k in range(4):
        p, y = prob[:, k], (target == k).float()
        losses.append(1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5))
    torch.testing.assert_close(soft_dice(logits, target, ALL), sum(losses) / 4)


def test_a_perfect_map_costs_nothing():
    target = torch.tensor([[[0, 1], [1, 0]]])
    logits = 50 * F.one_hot(target, 2).movedim(-1, 1).float()
    assert dice_cross_entropy(logits, target, ALL[:1], EVERY[:1, :2]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_chosen_have_no_influence_and_no_gradient(case, dtype):
    logits, target = (case[0].to(dtype).requires_grad_(), case[1])
    rows = torch.tensor([True, False, True])
    loss = dice_cross_entropy(logits, target, rows, EVERY)
    loss.backward()
    noise = target.clone()
    noise[1] = 999
    assert torch.equal(loss, dice_cross_entropy(logits, noise, rows, EVERY))
    assert not logits.grad[1].any()
    assert logits.grad[0].abs().min() > 0


def test_no_labelled_row_costs_zero_with_a_zero_gradient(case):
    logits = case[0].requires_grad_()
    loss = dice_cross_entropy(logits, case[1], ~ALL, EVERY)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_a_class_that_is_not_annotated_gets_no_gradient(case):
    logits, target = case[0].requires_grad_(), case[1].clamp(max=2)
    classes = torch.tensor([[True, True, True, False]]).expand(3, 4)
    dice_cross_entropy(logits, target, ALL, classes).backward()
    assert not logits.grad[:, 3].any()
    assert annotated_logits(logits, classes).argmax(1).max() <= 2
    assert torch.isfinite(logits.grad).all()


def test_annotated_classes_are_scored_as_if_there_were_no_others(case):
    logits, target = case[0], case[1].clamp(max=2)
    classes = torch.tensor([[True, True, True, False]]).expand(3, 4)
    whole = cross_entropy(annotated_logits(logits, classes), target, ALL)
    torch.testing.assert_close(whole, F.cross_entropy(logits[:, :3], target))


def test_gradient_is_that_of_finite_differences(case):
    logits, target = case[0][:1, :, :3, :3].double(), case[1][:1, :3, :3]
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy(z, target, ALL[:1]) + soft_dice(z, target, ALL[:1]), logits.requires_grad_()
    )


def test_a_weight_of_one_changes_nothing(case):
    logits, target = case
    rows, one = torch.tensor([True, False, True]), torch.ones(3, 9, 7)
    for loss in (cross_entropy, soft_dice):
        torch.testing.assert_close(loss(logits, target, rows, weight=one), loss(logits, target, rows))


def test_integer_weights_are_repeated_pixels(case):
    """A pixel of weight 2 is the pixel twice, one of weight 0 is not there; rows that are not chosen stay out."""
    logits, target = case
    rows = torch.tensor([True, False, True])
    weight = torch.randint(0, 3, target.shape)
    times = weight[rows].flatten()
    pixels = logits[rows].movedim(1, -1).flatten(0, 2).repeat_interleave(times, 0).T[None, :, :, None]
    labels = target[rows].flatten().repeat_interleave(times)[None, :, None]
    for loss in (cross_entropy, soft_dice):
        torch.testing.assert_close(loss(logits, target, rows, weight=weight), loss(pixels, labels, ALL[:1]))
    both = dice_cross_entropy(logits, target, rows, EVERY, weight=weight.float())
    torch.testing.assert_close(both, dice_cross_entropy(pixels, labels, ALL[:1], EVERY[:1]))


def test_cross_entropy_does_not_feel_the_scale_of_the_weights(case):
    weight = torch.rand(3, 9, 7)
    whole, part = (cross_entropy(*case, ALL, weight=scale * weight) for scale in (1, 0.1))
    torch.testing.assert_close(whole, part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_without_weight_have_no_gradient_and_no_weight_no_loss(case, dtype):
    logits, target = case[0].to(dtype).requires_grad_(), case[1]
    weight = torch.ones(3, 9, 7)
    weight[:, :4] = 0
    dice_cross_entropy(logits, target, ALL, EVERY, weight=weight).backward()
    assert not logits.grad[:, :, :4].any()
    assert logits.grad[:, :, 4:].abs().min() > 0
    nothing = dice_cross_entropy(logits, target, ALL, EVERY, weight=0 * weight)
    assert nothing == 0
    assert torch.isfinite(torch.autograd.grad(nothing, logits)[0]).all()


def test_dice_is_knowsams():
    """reference/knowsam_losses.json (KnowSAM @ 5ceef5a, torch 2.13.0 CPU float32): softmax inside, epsilon 1e-10."""
    logits = torch.from_numpy(np.random.RandomState(31).standard_normal((2, 4, 32, 32)).astype(np.float32))
    target = torch.from_numpy(np.random.RandomState(33).randint(0, 4, (2, 32, 32)))
    assert soft_dice(logits, target, ALL[:2]).item() == pytest.approx(0.6388635635375977, abs=1e-5)
