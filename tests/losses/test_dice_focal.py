"""ESP-MedSAM's losses against their formulas written out, hand-sized cases and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from segdistill.losses.dice_focal import dice_focal, embedding_distance, patch_cross_entropy

ALL = torch.ones(3, dtype=torch.bool)
EVERY = torch.ones(3, 4, dtype=torch.bool)


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(3, 4, 9, 7), torch.randint(0, 4, (3, 9, 7))


def written_out(prob, target):
    """One row, one class: a loop over its pixels."""
    focal, overlap, total = 0.0, 0.0, 0.0
    for p, y in zip(prob.flatten().tolist(), target.flatten().tolist(), strict=True):
        bce = -(y * math.log(p) + (1 - y) * math.log(1 - p))
        focal += 0.8 * (1 - math.exp(-bce)) ** 2 * bce / prob.numel()
        overlap, total = overlap + p * y, total + p + y
    return 0.8 * (1 - (2 * overlap + 1) / (total + 1)) + 0.2 * focal


def test_one_class_is_the_papers_sigmoid(case):
    z, y = case[0][:, :1], (case[1] > 1).long()
    expected = sum(written_out(z[i, 0].sigmoid(), y[i]) for i in range(3)) / 3
    loss = dice_focal(torch.cat([torch.zeros_like(z), z], 1), y, ALL, EVERY[:, :2])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_several_classes_are_scored_by_their_softmax(case):
    logits, target = case
    prob = logits.softmax(1)
    pairs = [(i, c) for i in range(3) for c in (1, 2, 3)]
    expected = sum(written_out(prob[i, c], (target[i] == c).float()) for i, c in pairs) / 9
    assert dice_focal(logits, target, ALL, EVERY).item() == pytest.approx(expected, rel=1e-5)


def test_a_perfect_map_costs_nothing(case):
    logits = 60 * F.one_hot(case[1], 4).movedim(-1, 1).float()
    assert dice_focal(logits, case[1], ALL, EVERY) < 1e-5


@pytest.mark.parametrize("loss", [dice_focal, patch_cross_entropy])
def test_rows_that_are_not_chosen_and_classes_that_are_not_annotated_get_no_gradient(case, loss):
    x = (case[0] if loss is dice_focal else case[0][:, 1:, :1, :1].clone()).requires_grad_()
    rows = torch.tensor([True, False, True])
    classes = EVERY.clone()
    classes[0, 3] = False
    target = case[1].clone()
    target[0].clamp_(max=2)
    value = loss(x, target, rows, classes)
    value.backward()
    target[1] = 999
    assert torch.equal(value, loss(x, target, rows, classes))
    assert not x.grad[1].any()
    assert not x.grad[0, -1].any()
    assert x.grad[2].abs().min() > 0
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("loss", [dice_focal, patch_cross_entropy])
def test_no_labelled_row_costs_zero_with_a_zero_gradient(case, loss):
    x = (case[0] if loss is dice_focal else case[0][:, 1:, :1, :1].clone()).requires_grad_()
    value = loss(x, case[1], ~ALL, EVERY)
    value.backward()
    assert value == 0
    assert not x.grad.any()


def test_gradient_is_that_of_finite_differences(case, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    logits, target = case[0][:1, :, :3, :3].double().requires_grad_(), case[1][:1, :3, :3]
    assert torch.autograd.gradcheck(lambda z: dice_focal(z, target, ALL[:1], EVERY[:1]), logits)
    patch = case[0][:1, 1:, :1, :1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: patch_cross_entropy(p, target, ALL[:1], EVERY[:1]), patch)


def test_a_patch_holds_a_class_where_one_pixel_does():
    target = torch.zeros(1, 40, 64, dtype=torch.long)
    target[0, 33, 31], target[0, 0, 32] = 1, 2  # patches: rows of 32 and 8 pixels, two columns
    found = torch.tensor([[[[0.0, 0], [1, 0]], [[0, 1], [0, 0]]]])
    sure = 40 * (2 * found - 1)
    rows, classes = ALL[:1], EVERY[:1, :3]
    assert patch_cross_entropy(sure, target, rows, classes) < 1e-6
    assert patch_cross_entropy(-sure, target, rows, classes).item() == pytest.approx(40)
    assert patch_cross_entropy(0 * sure, target, rows, classes).item() == pytest.approx(math.log(2))


def test_embeddings_pull_the_student_only():
    student, teacher = (torch.tensor(v, requires_grad=True) for v in ([[1.0, 5.0]], [[0.0, 2.0]]))
    loss = embedding_distance(student, teacher)
    loss.backward()
    assert loss == 5
    assert student.grad.tolist() == [[1, 3]]
    assert teacher.grad is None
