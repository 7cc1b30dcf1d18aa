"""The average against a plain loop."""

import torch
from torch import nn

from segdistill.models.ema import MovingAverage


def network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_is_the_loop():
    torch.manual_seed(0)
    student = network()
    average = MovingAverage(student, 0.9)
    expected = [p.detach().clone() for p in student.parameters()]
    for i in range(1, 30):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        student(torch.randn(4, 3))
        average.update(student)
        decay = min(0.9, 1 - 1 / (i + 1))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, student.parameters(), strict=True)]
    for mean, value in zip(average.network.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, value)
    assert torch.equal(average.network[1].running_var, student[1].running_var)
    assert not any(p.requires_grad for p in average.parameters())
    assert average.updates == 29


def test_early_updates_forget_the_start():
    student = network()
    average = MovingAverage(student, 0.999)
    with torch.no_grad():
        student[0].weight.fill_(5.0)
    average.update(student)
    assert (average.network[0].weight > 2).all()


def test_started_from_trained_weights_it_keeps_to_them():
    """Equal at first, and the first update moves it by 1 - decay, not by half."""
    torch.manual_seed(0)
    average, student = MovingAverage(network(), 0.9), network()
    student(torch.randn(4, 3))
    average.start(student)
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in average.network.state_dict().items())
    start = student[0].weight.detach().clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    average.update(student)
    torch.testing.assert_close(average.network[0].weight, start + 0.1)
