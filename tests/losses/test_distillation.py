"""Generic distillation by hand, with gradients to one side."""

import math

import pytest
import torch

from segdistill.losses.distillation import distillation_kl, feature_distance


def test_kl_by_hand():
    """One pixel, p = (.8, .2) against q = (.5, .5) at T = 1."""
    teacher = torch.tensor([math.log(4.0), 0.0]).view(1, 2, 1, 1)
    wanted = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert distillation_kl(torch.zeros(1, 2, 1, 1), teacher, 1.0).item() == pytest.approx(wanted)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_kl_is_torchs(temperature):
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5, 6).unbind()
    both = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=z.movedim(1, -1) / temperature) for z in (t, s))
    )
    torch.testing.assert_close(distillation_kl(s, t, temperature), temperature**2 * both.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_teacher_gets_no_gradient(dtype):
    torch.manual_seed(0)
    s, t = (z.to(dtype).requires_grad_() for z in (30 * torch.randn(2, 3, 4, 5, 6)).unbind())
    loss = distillation_kl(s, t, 4.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(s.grad).all()
    assert s.grad.abs().amax((2, 3)).min() > 0
    assert t.grad is None


def test_features_are_mean_squares_per_stage():
    torch.manual_seed(0)
    s = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 2, 2, requires_grad=True)]
    t = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 2, 2, requires_grad=True)]
    loss = feature_distance(s, t)
    torch.testing.assert_close(loss, sum(torch.nn.functional.mse_loss(a, b) for a, b in zip(s, t, strict=True)) / 2)
    loss.backward()
    assert all(a.grad.any() for a in s)
    assert all(b.grad is None for b in t)
