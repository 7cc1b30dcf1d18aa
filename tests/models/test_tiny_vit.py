"""The trunk against loops over windows, tokens and rows, and against its own plain form."""

import pytest
import torch
import torch.nn.functional as F

from segdistill.models.controllers import Controllers, Rows, controls
from segdistill.models.tiny_vit import BLOCKS, Control, Mlp, TinyViT, WindowAttention


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_bank(modalities=3, *, shared=False):
    """Controllers that are as loud as the trunk."""
    bank = [Controllers(shared) for _ in range(modalities)]
    for parameter in (p for c in bank for p in c.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    return bank


def by_loops(attention, x, control):
    """One row (h, w, D), token by token; positions outside hold zeros before the norm, as released."""
    h, w, dim = x.shape
    n, heads, width = attention.window, attention.heads, dim // attention.heads
    out = torch.zeros_like(x)
    padded = F.pad(x, (0, 0, 0, -w % n, 0, -h % n))
    q, k, v = attention.qkv(attention.norm(padded)).unflatten(-1, (heads, 3, width)).unbind(-2)
    for i in range(h):
        for j in range(w):
            top, left = i // n * n, j // n * n
            places = [(a, b) for a in range(top, top + n) for b in range(left, left + n)]
            for head in range(heads):
                scores = [q[i, j, head] @ k[a, b, head] / width**0.5 for a, b in places]
                bias = attention.attention_biases[head]
                scores = [s + bias[abs(i - a) * n + abs(j - b)] for s, (a, b) in zip(scores, places, strict=True)]
                values = [v[a, b, head] for a, b in places]
                if control is not None:
                    scores.append(q[i, j, head] @ control.key[0, head] / width**0.5 + control.bias[0])
                    values.append(control.value[0, head])
                p = torch.stack(scores).softmax(0)
                out[i, j, head * width : (head + 1) * width] = (p[:, None] * torch.stack(values)).sum(0)
    return attention.proj(out)


@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("size", [(6, 6), (4, 7), (2, 3)])
def test_attention_is_the_loop(size, controlled):
    attention = WindowAttention(8, 2, window=3)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, *size, 8)
    control = Control(torch.randn(1, 2, 4), torch.randn(1, 2, 4), torch.randn(1), Mlp(8)) if controlled else None
    with torch.no_grad():
        y = attention(x, control)
        for row in range(2):
            torch.testing.assert_close(y[row], by_loops(attention, x[row], control), rtol=1e-4, atol=1e-5)


def test_parameters():
    """methods.md: 5.74 M with the neck, a controller 3.14 M."""
    assert sum(p.numel() for p in TinyViT().parameters()) == 5_743_892
    assert round(sum(p.numel() for p in Controllers(shared=True).parameters()) / 1e6, 2) == 3.14


@pytest.mark.parametrize("size", [(32, 32), (64, 160), (96, 32)])
def test_the_embedding_has_a_sixteenth_of_each_side(size):
    trunk = TinyViT().eval()
    with torch.no_grad():
        assert trunk(torch.rand(1, 3, *size)).shape == (1, 256, size[0] // 16, size[1] // 16)


def test_controllers_start_as_the_trunk():
    """Exact but for the extra key's weight: exp(-8) of a token's in windows of at least 49."""
    trunk = TinyViT().eval()
    for parameter in trunk.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = trunk(x)
        started = trunk(x, controls([Controllers(shared=False)], Rows.of(torch.zeros(2, dtype=torch.long), 1)))
    assert (started - plain).abs().max() < 1e-4 * plain.abs().max()
    assert plain.std() > 0.1


@pytest.mark.parametrize("shared", [False, True])
def test_a_mixed_batch_is_its_rows(shared):
    trunk, bank = TinyViT().eval(), random_bank(shared=shared)
    x, modality = torch.randn(5, 3, 32, 64), torch.tensor([2, 0, 2, 1, 0])
    with torch.no_grad():
        mixed = trunk(x, controls(bank, Rows.of(modality, 3)))
        for i, m in enumerate(modality.tolist()):
            alone = trunk(x[[i]], controls(bank, Rows.of(torch.tensor([m]), 3)))
            torch.testing.assert_close(mixed[[i]], alone, rtol=1e-4, atol=1e-4)
            other = trunk(x[[i]], controls(bank, Rows.of(torch.tensor([(m + 1) % 3]), 3)))
            assert (other - alone).abs().max() > 0.1


def test_what_an_exported_graph_chooses_is_what_grouping_chooses():
    mlps, x = [Mlp(16) for _ in range(3)], torch.randn(1, 5, 16)
    grouped = Rows.of(torch.tensor([2]), 3)
    traced = grouped._replace(groups=())
    assert torch.equal(traced.apply(mlps, x), grouped.apply(mlps, x))
    assert torch.equal(traced.pick([m.fc1.bias for m in mlps]), grouped.pick([m.fc1.bias for m in mlps]))


def test_gradients_reach_the_present_modalities_only():
    trunk, bank = TinyViT().eval(), random_bank()
    trunk(torch.randn(2, 3, 32, 32), controls(bank, Rows.of(torch.tensor([0, 2]), 3))).square().sum().backward()
    touched = [any(p.grad is not None and p.grad.any() for p in c.parameters()) for c in bank]
    assert touched == [True, False, True]
    assert len(controls(bank, Rows.of(torch.tensor([0]), 3))) == len(BLOCKS) == 10


def test_weights_loaded_after_eval_are_the_weights_used():
    """The released network caches its attention biases in eval()."""
    torch.manual_seed(1)
    donor = TinyViT()
    for name, parameter in donor.named_parameters():
        if name.endswith("attention_biases"):
            torch.nn.init.normal_(parameter)
    late, early = TinyViT().eval(), TinyViT()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        late(x)
        late.load_state_dict(donor.state_dict())
        early.load_state_dict(donor.state_dict())
        assert torch.equal(late(x), early.eval()(x))
