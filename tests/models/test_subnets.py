"""The subnets are KnowSAM's: their numbers, their keys, their sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.fill import fill, make_input

from segdistill.models.students import STUDENTS, build_student, student_spec
from segdistill.models.unet import UNet
from segdistill.models.vnet import VNet
from segdistill.types import UserError

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "knowsam_subnets.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("name", "official"), [("unet", UNet), ("vnet", VNet)])
def test_outputs_are_knowsams(name, official, classes):
    """reference/knowsam_sgdl_cC (KnowSAM @ 5ceef5a, torch 2.13.0 CPU float32), official keys."""
    case = REFERENCE["cases"][f"{official.__name__}_c{classes}"]
    weights = {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in case["keys"].items()}
    network = build_student(name, classes=classes).eval()
    result = network.load_state_dict(official.from_official(weights), strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    with torch.no_grad():
        logits = network(torch.from_numpy(make_input(21, (2, 3, 256, 256), "rand")))
    assert list(logits.shape) == case["shape"]
    largest = max(abs(case["min"]), abs(case["max"]))
    np.testing.assert_allclose(logits.flatten()[case["idx"]], case["values"], atol=1e-4 * largest)


@pytest.mark.parametrize(("name", "count"), [("unet", 1_944_322), ("vnet", 3_265_986)])
def test_parameters(name, count):
    assert sum(p.numel() for p in build_student(name, classes=2).parameters()) == count


def test_batch_norm_is_all_that_a_normalised_vnet_adds():
    """At the start it changes nothing but in the batch's statistics; each convolution but the head has one."""
    torch.manual_seed(0)
    plain = build_student("vnet", classes=2).eval()
    torch.manual_seed(0)
    normalised = build_student("vnet", classes=2, normalised=True).eval()
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(normalised(image), plain(image), rtol=1e-3, atol=1e-3)
        normalised.train()
        normalised(10 * image)
    norms = [m for m in normalised.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    convolved = [m for m in normalised.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert [n.num_features for n in norms] == [m.out_channels for m in convolved[:-1]]
    assert all(n.running_mean.abs().max() > 0 for n in norms)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("size", [(16, 16), (33, 47), (100, 64)])
def test_any_size_keeps_its_size(name, size):
    network = build_student(name, classes=3).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("name", ["unet", "vnet"])
def test_padding_is_only_at_the_far_sides(name):
    network = build_student(name, classes=2).eval()
    image = torch.rand(1, 3, 40, 56)
    padded = torch.nn.functional.pad(image, (0, 8, 0, 8))
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(padded)[..., :40, :56])


def test_a_student_knows_how_it_was_built():
    assert student_spec(build_student("unet", classes=5)) == ("unet", {"classes": 5})
    with pytest.raises(UserError, match="unet"):
        build_student("vgg", classes=2)
    with pytest.raises(TypeError):
        student_spec(torch.nn.Identity())
