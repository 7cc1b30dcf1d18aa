"""The structure loss against a loop over pixels and the released code's numbers; what it must not touch."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference.fill import make_input
from reference.polyp_maps import polyp_maps

from segdistill.losses.structure import edge_weight, released_structure_loss, structure_loss

REFERENCE = Path(__file__).parents[1] / "reference"


def flags(rows, classes):
    return torch.ones(rows, dtype=torch.bool), torch.ones(rows, classes, dtype=torch.bool)


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(3, 4, 40, 33), torch.randint(0, 4, (3, 40, 33))


def by_hand(z, y):
    """One map and one mask, (H, W), in float64 with a loop for the weights."""
    z, y = z.double(), y.double()
    padded = F.pad(y, (15,) * 4)
    mean = torch.tensor([[padded[i : i + 31, j : j + 31].mean() for j in range(y.shape[1])] for i in range(y.shape[0])])
    w, p = 1 + 5 * (mean - y).abs(), z.sigmoid()
    bce = -(y * p.log() + (1 - y) * (1 - p).log())
    iou = ((w * p * y).sum() + 1) / ((w * (p + y - p * y)).sum() + 1)
    return (w * bce).sum() / w.sum() + 1 - iou


def test_two_classes_are_the_formula(case):
    z, y = case[0][:, :1], (case[1] > 1).long()
    loss = structure_loss(F.pad(z, (0, 0, 0, 0, 1, 0)), y, *flags(3, 2))
    wanted = torch.stack([by_hand(z[i, 0], y[i]) for i in range(3)]).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_more_classes_are_one_against_the_rest_of_the_softmax(case):
    z, y = case
    p = z.double().softmax(1)[:, 1:]
    margins = (p / (1 - p)).log()
    wanted = torch.stack([by_hand(margins[i, k - 1], y[i] == k) for i in range(3) for k in range(1, 4)]).mean()
    assert structure_loss(z, y, *flags(3, 4)).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_edge_counts_and_the_middle_does_not():
    mask = torch.zeros(1, 1, 101, 101)
    mask[..., 50:] = 1
    weight = edge_weight(mask)
    assert weight[0, 0, 50, 10] == pytest.approx(1)
    assert weight[0, 0, 50, 49] == pytest.approx(1 + 5 * 15 / 31)


@pytest.mark.parametrize("size", [(7, 90), (40, 33), (31, 1)])
def test_the_edge_weight_is_that_of_the_average_pool(size):
    torch.manual_seed(0)
    mask = (torch.rand(2, 3, *size) > 0.6).float()
    mean = F.avg_pool2d(mask.double(), 31, stride=1, padding=15)
    torch.testing.assert_close(edge_weight(mask).double(), 1 + 5 * (mean - mask).abs(), atol=1e-5, rtol=0)


def test_edge_weights_act_here_and_not_in_the_released_bce():
    """The same error costs more at the boundary; released, its BCE does not know where it is."""
    y = torch.zeros(1, 96, 96, dtype=torch.long)
    y[:, :, 48:] = 1

    def wrong_at(column):
        z = torch.where(y == 1, 8.0, -8.0)[:, None]
        z[..., column] *= -1
        return F.pad(z, (0, 0, 0, 0, 1, 0))

    ours = [structure_loss(wrong_at(c), y, *flags(1, 2)) for c in (47, 20)]
    released = [released_structure_loss(wrong_at(c), y, *flags(1, 2)) for c in (47, 20)]
    bce = [F.binary_cross_entropy_with_logits(wrong_at(c)[:, 1], y.float()) for c in (47, 20)]
    assert ours[0] > 1.5 * ours[1]
    assert bce[0] == pytest.approx(bce[1].item())
    assert released[0] - bce[0] > released[1] - bce[1]  # the IoU part


@pytest.mark.parametrize("loss_of", [structure_loss, released_structure_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_chosen_rows_and_annotated_classes_get_a_gradient(case, loss_of, dtype):
    logits, target = case[0].to(dtype).requires_grad_(), case[1]
    rows = torch.tensor([True, False, True])
    classes = torch.ones(3, 4, dtype=torch.bool)
    classes[0, 3] = False
    loss = loss_of(logits, target, rows, classes)
    loss.backward()
    noise = target.clone()
    noise[1] = 999
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(logits, noise, rows, classes))
    assert not logits.grad[1].any()
    assert not logits.grad[0, 3].any()
    assert logits.grad[0, :3].abs().amax((1, 2)).min() > 0
    assert logits.grad[2].abs().amax((1, 2)).min() > 0


def test_no_labelled_row_costs_zero_with_a_zero_gradient(case):
    logits = case[0].requires_grad_()
    loss = structure_loss(logits, case[1], torch.zeros(3, dtype=torch.bool), flags(3, 4)[1])
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("classes", [2, 3])
def test_extreme_logits_in_bf16_stay_finite(classes):
    logits = (300 * torch.randn(2, classes, 48, 48)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = structure_loss(logits, torch.randint(0, classes, (2, 48, 48)), *flags(2, classes))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_released_loss_is_the_released_codes():
    """reference/kdas_losses.json, structure_polyppvt_tiny_0 and _1 (KDAS @ 647d51b, torch 2.13.0 CPU float32)."""
    keys = json.loads((REFERENCE / "polyp_pvt_tiny.json").read_text(encoding="utf-8"))["keys"]
    target = torch.from_numpy(make_input(52, (2, 1, 352, 352)) > 0)[:, 0].long()
    for logits, wanted in zip(polyp_maps(keys, "b0"), (1.5072083473205566, 18.709388732910156), strict=True):
        assert released_structure_loss(logits, target, *flags(2, 2)).item() == pytest.approx(wanted, rel=1e-4)
