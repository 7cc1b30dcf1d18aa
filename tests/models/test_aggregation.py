"""The trio is KnowSAM's; the default only corrects the mean of the two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.fill import fill, make_input

from segdistill.models.aggregation import Trio
from segdistill.models.students import build_student

FOLDER = Path(__file__).parents[1] / "reference"
FUSION = json.loads((FOLDER / "knowsam_fusion.json").read_text(encoding="utf-8"))["cases"]
SUBNETS = json.loads((FOLDER / "knowsam_subnets.json").read_text(encoding="utf-8"))["cases"]


def official(classes):
    keys = FUSION[f"c{classes}"]["keys"]
    for name in ("UNet", "VNet"):
        keys = keys | SUBNETS[f"{name}_c{classes}"]["keys"]
    return {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in keys.items()}


def assert_values(actual, expected, tolerance):
    assert list(actual.shape) == expected["shape"]
    largest = max(abs(expected["min"]), abs(expected["max"]))
    np.testing.assert_allclose(actual.flatten()[expected["idx"]], expected["values"], atol=tolerance * largest)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_released_trio_is_knowsams(classes):
    """reference/knowsam_sgdl_cC and its trainBN (KnowSAM @ 5ceef5a, torch 2.13.0 CPU float32), official keys."""
    trio = build_student("knowsam_trio", classes=classes, corrects=False).eval()
    result = trio.load_state_dict(Trio.from_official(official(classes)), strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    image = torch.from_numpy(make_input(21, (2, 3, 256, 256), "rand"))
    with torch.no_grad():
        assert_values(trio(image), FUSION[f"c{classes}"]["eval"], 1e-4)
        for module in trio.modules():
            module.training = isinstance(module, torch.nn.BatchNorm2d)
        for z, name in zip(trio.branches(image), ("pred_UNet", "pred_VNet", "fusion"), strict=True):
            assert_values(z, FUSION[f"c{classes}"]["train"][name], 1e-3)


def test_parameters():
    aggregation = build_student("knowsam_trio", classes=2, corrects=False).aggregation
    assert sum(p.numel() for p in aggregation.parameters()) == 40_548
    assert sum(p.numel() for p in build_student("knowsam_trio", classes=2).parameters()) == 5_250_856 + 1


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_default_adds_g_times_h_to_the_mean(classes):
    trio = build_student("knowsam_trio", classes=classes).eval()
    with torch.no_grad():
        z_a, z_b, z_f = trio.branches(torch.rand(2, 3, 40, 56))
        h = trio.aggregation.aggregation(z_a, z_b)
        torch.testing.assert_close(z_f, (z_a + z_b) / 2 + 0.1 * h)
        trio.aggregation.gate.zero_()
        mean = build_student("knowsam_mean", classes=classes).eval()
        mean.load_state_dict({k: v for k, v in trio.state_dict().items() if not k.startswith("aggregation")})
        image = torch.rand(1, 3, 33, 47)
        assert torch.equal(mean(image), trio(image))


def test_disagreement_is_the_xor_per_class():
    """Three classes, two pixels: at the first both say class 0; at the second a says 1, b is undecided."""
    aggregation = build_student("knowsam_trio", classes=3, corrects=False).aggregation
    seen = []
    aggregation.disagreement.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    aggregation.certainty.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z_a = torch.tensor([[9.0, 0], [0, 9], [0, 0]]).view(1, 3, 1, 2)
    z_b = torch.tensor([[9.0, 0], [0, 0], [0, 0]]).view(1, 3, 1, 2)
    aggregation.eval()(z_a, z_b)
    assert seen[0].flatten(2).tolist() == [[[1, 1], [1, 0], [1, 1]]]
    assert seen[1][0, 1, 0, 1].item() == pytest.approx(1 - np.log(3), abs=1e-4)


def test_the_default_disagrees_like_the_xor_but_without_a_step():
    hard = build_student("knowsam_trio", classes=2, corrects=False).aggregation._disagree
    soft = build_student("knowsam_trio", classes=2).aggregation.aggregation._disagree
    p_a, p_b = torch.rand(2, 4, 2, 64, 64)
    clear = ((p_a - 0.5).abs() > 0.01) & ((p_b - 0.5).abs() > 0.01)
    torch.testing.assert_close(soft(p_a, p_b)[clear], hard(p_a, p_b)[clear], atol=1e-6, rtol=0)
    change = soft(p_a + 1e-6, p_b) - soft(p_a, p_b)
    assert change.abs().max() < 1e-3


@pytest.mark.parametrize("corrects", [True, False])
def test_the_fusion_reaches_both_subnets(corrects):
    trio = build_student("knowsam_trio", classes=2, corrects=corrects)
    trio(torch.rand(2, 3, 32, 48)).square().mean().backward()
    for name, parameter in trio.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("head.weight"):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("normalised", [False, True])
def test_a_seed_gives_the_unet_of_the_trio_the_weights_of_a_unet_alone(normalised):
    """So that runs of one seed start alike, and earlier results can be trained again."""
    torch.manual_seed(0)
    alone = build_student("unet", classes=2).state_dict()
    for name in ("knowsam_trio", "knowsam_mean"):
        torch.manual_seed(0)
        trio = build_student(name, classes=2, normalised=normalised)
        assert all(torch.equal(value, alone[key]) for key, value in trio.unet.state_dict().items())
