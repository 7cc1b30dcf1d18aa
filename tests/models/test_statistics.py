"""Batch norm's running statistics."""

import torch
from torch import nn

from segdistill.models.statistics import precise_statistics, training_norms


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


def test_precise_statistics_are_the_mean_over_batches_without_dropout():
    net = network().train()
    for _ in range(3):
        net(torch.randn(4, 3, 9, 9) + 5)  # what is forgotten
    net.eval()
    batches = [torch.rand(n, 3, 9, 9) for n in (4, 4, 2)]
    precise_statistics([net[1], net[4]], net, batches)
    first = [net[0](image) for image in batches]
    means = torch.stack([x.mean((0, 2, 3)) for x in first])
    variances = torch.stack([x.var((0, 2, 3)) for x in first])  # unbiased, as batch norm remembers it
    torch.testing.assert_close(net[1].running_mean, means.mean(0))
    torch.testing.assert_close(net[1].running_var, variances.mean(0))
    second = [net[3](nn.functional.batch_norm(x, None, None, net[1].weight, net[1].bias, training=True)) for x in first]
    torch.testing.assert_close(net[4].running_mean, torch.stack([x.mean((0, 2, 3)) for x in second]).mean(0))
    assert not any(m.training for m in net.modules())
    assert net[1].momentum == 0.1


def test_norms_that_are_held_still_are_left_alone():
    net = network().train()
    net[1].eval()
    assert training_norms(net) == [net[4]]
