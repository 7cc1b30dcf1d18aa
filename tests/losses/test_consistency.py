"""Consistency losses: values by hand, gradients to one side."""

import math

import pytest
import torch

from segdistill.losses.consistency import confident_cross_entropy, mean_squared_probability, ramp_up

EVERY = torch.ones(2, 3, dtype=torch.bool)
EVERY_PIXEL = torch.ones(1, 2, 1, 1, dtype=torch.bool)


def test_ramp():
    assert [ramp_up(t, 0.1, 0.4) for t in (0, 0.05, 0.4, 1)] == [0, 0, 1, 1]
    assert ramp_up(0.1, 0.1, 0.4) == pytest.approx(math.exp(-5))
    assert ramp_up(0.25, 0.1, 0.4) == pytest.approx(math.exp(-1.25))


def test_mean_square():
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 3, 4, 5).unbind()
    a.requires_grad_(), b.requires_grad_()
    loss = mean_squared_probability(a, b, EVERY)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(a.softmax(1), b.softmax(1)))
    loss.backward()
    assert a.grad.abs().max() > 0
    assert b.grad is None
    assert mean_squared_probability(a, a, EVERY) == 0


def test_confident_pixels_count():
    logits = torch.zeros(1, 2, 1, 2)
    label = torch.tensor([[[0, 1]]])
    confidence = torch.tensor([[[0.99, 0.6]]])
    for threshold, share in ((0.95, 1 / 2), (0.5, 1)):
        loss = confident_cross_entropy(logits, label, confidence, EVERY_PIXEL, threshold)
        assert loss.item() == pytest.approx(share * math.log(2))


def test_a_pixel_learns_its_own_classes_only():
    """Both pixels are background; the first knows classes 0 and 1, the second 0 and 2."""
    logits = torch.zeros(1, 3, 1, 2, requires_grad=True)
    known = torch.tensor([[True, True], [True, False], [False, True]])[None, :, None]
    label, sure = torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1, 1, 2)
    loss = confident_cross_entropy(logits, label, sure, known, 0.95)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert torch.equal(logits.grad != 0, known)
