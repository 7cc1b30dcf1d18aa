"""KDAS's terms by hand, their gradients, and the released ones, which have none."""

import json
import math

import numpy as np
import pytest
import torch
from reference.fill import make_input
from reference.polyp_maps import polyp_maps

from segdistill.losses.attention import (
    attention_loss,
    released_attention_loss,
    released_symmetric_loss,
    released_teacher_attention,
    row_attention,
    symmetric_loss,
    symmetric_part,
)
from segdistill.losses.structure import released_structure_loss

T = 2.0
LOSSES = {"attention": lambda s, t: attention_loss(s, t, T), "symmetric": symmetric_loss}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return 3 * torch.randn(2, 3, 6, 9), 3 * torch.randn(2, 3, 6, 9)


def attention_by_hand(x):
    """One map (h, w), in float64: a distribution per row of the grid."""
    u = np.tanh(x.double().numpy() / 2)
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    scores = np.exp(math.sqrt(x.shape[1]) * u @ u.T / T)
    return scores / scores.sum(1, keepdims=True)


def test_attention_is_the_formula_on_any_grid(pair):
    s, t = pair
    rows = []
    for i in range(2):
        for k in range(3):
            a, b = attention_by_hand(t[i, k]), attention_by_hand(s[i, k])
            np.testing.assert_allclose(row_attention(s, T)[i, k].exp(), b, atol=1e-5)
            rows.extend((a * np.log(a / b)).sum(1))
    assert attention_loss(s, t, T).item() == pytest.approx(T**2 * np.mean(rows), rel=1e-4)


def test_symmetric_part_of_a_square_grid_is_the_formula(pair):
    x = pair[0][..., :6]
    u = torch.tanh(x / 2)
    torch.testing.assert_close(symmetric_part(x), 0.5 * (u + u.mT))


def test_symmetric_part_of_another_grid_is_that_of_its_average():
    """6 x 12: pairs of columns are averaged, after the tanh."""
    x = torch.randn(1, 1, 6, 12)
    u = torch.tanh(x / 2).unflatten(-1, (6, 2)).mean(-1)
    torch.testing.assert_close(symmetric_part(x), 0.5 * (u + u.mT))
    torch.testing.assert_close(symmetric_part(x.mT), symmetric_part(x))


def test_antisymmetric_differences_cost_nothing_symmetrically_but_cost_attention(pair):
    t = pair[0][..., :6]
    assert symmetric_loss(t.mT, t) < 1e-12
    assert attention_loss(t.mT, t, T) > 1e-3


@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
def test_equal_maps_cost_nothing(pair, loss_of):
    assert loss_of(pair[0], pair[0]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
def test_the_gradient_reaches_every_student_map_and_no_teacher(pair, loss_of, dtype):
    s, t = (x.to(dtype).requires_grad_() for x in pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(s, t)
    loss.backward()
    assert loss.dtype == torch.float32
    assert s.grad.abs().amax((2, 3)).min() > 0
    assert t.grad is None


@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 300.0])
def test_empty_and_extreme_maps_have_a_finite_gradient(pair, loss_of, scale):
    s = (scale * pair[0]).requires_grad_()
    loss_of(s, pair[1]).backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
def test_descent_brings_the_student_to_the_teacher(pair, loss_of):
    s = torch.zeros_like(pair[0]).add(0.1 * pair[0].flip(0)).requires_grad_()
    optimizer = torch.optim.Adam([s], lr=0.05)
    start = loss_of(s, pair[1]).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss_of(s, pair[1]).backward()
        optimizer.step()
    assert loss_of(s, pair[1]) < 0.1 * start


def test_the_released_attention_term_has_no_gradient_and_is_nan():
    """KDAS @ 647d51b: softmax over one channel is 1 whatever the student says, and the target is negative somewhere."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 1, 16, 16).unbind()
    student.requires_grad_(), teacher.requires_grad_()
    loss = released_attention_loss(student, teacher, T)
    loss.backward()
    assert torch.isnan(loss)
    assert not student.grad.any()
    assert teacher.grad is None
    positive = released_attention_loss(student, teacher.detach().abs() + 0.1, T)
    assert torch.isfinite(positive)
    assert torch.equal(positive, released_attention_loss(-5 * student, teacher.detach().abs() + 0.1, T))


def test_the_released_symmetric_term_ignores_what_is_antisymmetric():
    student = torch.randn(2, 1, 8, 8, requires_grad=True)
    difference = torch.randn(2, 1, 8, 8)
    teacher = student.detach() + difference - difference.mT
    loss = released_symmetric_loss(student, teacher.requires_grad_())
    assert loss < 1e-10
    released_symmetric_loss(student, teacher + 1).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.shared
def test_the_released_terms_are_the_released_codes(shared):
    """reference/kdas_losses.json (KDAS @ 647d51b, torch 2.13.0 CPU float32): all of it."""
    folder = shared / "reference"
    wanted = json.loads((folder / "kdas_losses.json").read_text(encoding="utf-8"))
    found = {}
    for name, backbone in (("polyppvt", "b2"), ("polyppvt_tiny", "b0")):
        keys = json.loads((folder / f"{name}_352.keys.json").read_text(encoding="utf-8"))["keys"]
        found[name] = polyp_maps({k: shape for k, (shape, kind) in keys.items() if kind == "float32"}, backbone)
    target = torch.from_numpy(make_input(52, (2, 1, 352, 352)) > 0)[:, 0].long()
    every = torch.ones(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    for name, pair in found.items():
        for i, logits in enumerate(pair):
            loss = released_structure_loss(logits, target, *every).item()
            assert loss == pytest.approx(wanted[f"structure_{name}_{i}"], rel=1e-4)
    student, teacher = found["polyppvt_tiny"][0][:, 1:], found["polyppvt"][0][:, 1:]
    assert released_symmetric_loss(student, teacher).item() == pytest.approx(wanted["cos_mse_sym"], rel=1e-4)
    attention = released_teacher_attention(teacher, T).flatten()[wanted["teacher_att"]["idx"]]
    np.testing.assert_allclose(attention, wanted["teacher_att"]["values"], atol=1e-4 * 0.513)
