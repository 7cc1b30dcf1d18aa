from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segdistill.transforms.intensity import Holes, Light, cut_holes, draw_holes, draw_light, relight


@given(st.integers(0, 2**31), st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_relight_is_albumentations_formula(seed: int, rows: int) -> None:
    """alpha x + beta on [0, 1], cut off; rows by hand."""
    torch.manual_seed(seed)
    image, light = torch.rand(rows, 3, 7, 5), draw_light(rows, 0.5)
    lit = relight(image, light)
    for row in range(rows):
        expected = image[row].numpy() * light.contrast[row].item() + light.brightness[row].item()
        assert torch.allclose(lit[row], torch.from_numpy(expected.clip(0, 1)), atol=1e-6)


def test_untouched_rows_keep_their_bits() -> None:
    image = torch.rand(3, 3, 8, 8)
    assert torch.equal(relight(image, draw_light(3, 0.0)), image)
    assert torch.equal(cut_holes(image, draw_holes(3, (5, 8), 0.0)), image)


def test_relight_leaves_its_input_alone() -> None:
    image = torch.full((1, 3, 4, 4), 0.5)
    lit = relight(image, Light(torch.tensor([1.2]), torch.tensor([0.2])))
    assert lit.unique().tolist() == pytest.approx([0.8])
    assert image.unique().tolist() == [0.5]


@pytest.mark.parametrize("probability", [0.2, 0.6])
def test_light_rates_and_limits(probability: float) -> None:
    torch.manual_seed(0)
    contrast, brightness = draw_light(20_000, probability)
    acts = contrast != 1
    assert acts.float().mean().item() == pytest.approx(probability, abs=0.02)
    assert torch.equal(acts, brightness != 0)
    assert 0.195 < (contrast - 1).abs().max() <= 0.2001
    assert 0.195 < brightness.abs().max() <= 0.2001


@pytest.mark.parametrize(
    ("size", "hole"), [((256, 256), (12, 12)), ((128, 200), (6, 10)), ((20, 39), (1, 1)), ((7, 7), (1, 1))]
)
def test_one_hole_has_its_size_and_lies_inside(size: tuple[int, int], hole: tuple[int, int]) -> None:
    corners = torch.tensor([[[0.0, 0.0]], [[0.999999, 0.999999]], [[0.5, 0.25]]])
    dropped = cut_holes(torch.ones(3, 3, *size), Holes(corners, torch.ones(3, 1, dtype=torch.bool)))
    assert (dropped == 0).sum((1, 2, 3)).tolist() == [3 * hole[0] * hole[1]] * 3
    first = dropped[0, 0]
    assert not first[: hole[0], : hole[1]].any()
    assert not dropped[1, 0][-hole[0] :, -hole[1] :].any()


@pytest.mark.parametrize("count", [(5, 8), (10, 20)])
def test_hole_counts(count: tuple[int, int]) -> None:
    torch.manual_seed(1)
    holes = draw_holes(5_000, count, 0.7)
    number = holes.present.sum(1)
    assert (number > 0).float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert set(number.unique().tolist()) == {0, *range(count[0], count[1] + 1)}


def test_holes_seen_in_the_picture() -> None:
    """On a large image holes rarely touch: count them with scipy."""
    torch.manual_seed(2)
    holes = draw_holes(1, (8, 8), 1.0)._replace(corner=torch.rand(1, 8, 2) * 0.05)
    spread = torch.stack(torch.meshgrid(torch.arange(4) / 4, torch.arange(2) / 2, indexing="ij"), -1).view(1, 8, 2)
    dropped = cut_holes(torch.ones(1, 3, 400, 400), holes._replace(corner=holes.corner + spread))
    labelled, found = ndimage.label((dropped[0, 0] == 0).numpy())
    assert found == 8
    assert {(s[0].stop - s[0].start, s[1].stop - s[1].start) for s in ndimage.find_objects(labelled)} == {(20, 20)}
    assert torch.equal(dropped[0, 0], dropped[0, 2])


def test_channels_last_is_kept() -> None:
    image = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    done = cut_holes(relight(image, draw_light(2, 1.0)), draw_holes(2, (5, 8), 1.0))
    assert done.is_contiguous(memory_format=torch.channels_last)
