from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segdistill.transforms.geometry import FIELDS, Motion, displacement, draw_motion, move


def still(rows: int = 1, **changes: torch.Tensor) -> Motion:
    motion = Motion(
        flip=torch.zeros(rows, 2, dtype=torch.bool),
        shift=torch.zeros(rows, 2),
        scale=torch.ones(rows),
        angle=torch.zeros(rows),
        nodes=tuple(torch.zeros(rows, 2, cells + 3, cells + 3) for cells, _ in FIELDS),
    )
    return motion._replace(**changes)


def disk(height: int, width: int, y: float, x: float, radius: float) -> torch.Tensor:
    """Mask (1, H, W) of a disk; centre and radius in pixels."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).long()[None]


def centroid(mask: torch.Tensor) -> tuple[float, float]:
    y, x = mask[0].nonzero(as_tuple=True)
    return float(y.float().mean()) + 0.5, float(x.float().mean()) + 0.5


sizes = st.tuples(st.integers(1, 50), st.integers(1, 50))


@given(sizes, st.integers(0, 2**31), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_types_shapes_range_and_labels(size: tuple[int, int], seed: int, rows: int) -> None:
    torch.manual_seed(seed)
    image, mask = torch.rand(rows, 3, *size), torch.randint(0, 256, (rows, *size))
    before = image.clone(), mask.clone()
    moved, labels = move(image, mask, draw_motion(rows, 0.5))
    assert moved.shape == image.shape
    assert moved.dtype == torch.float32
    assert labels.shape == mask.shape
    assert labels.dtype == torch.long
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])  # noqa: PT018  the input stays
    for row in range(rows):
        assert set(labels[row].unique().tolist()) <= set(mask[row].unique().tolist())
        low, high = image[row].min(), image[row].max()
        assert moved[row].min() >= low - 1e-5
        assert moved[row].max() <= high + 1e-5


@given(sizes, st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_flips_are_exact(size: tuple[int, int], across: bool, down: bool) -> None:
    image, mask = torch.rand(2, 3, *size), torch.randint(0, 9, (2, *size))
    flip = torch.tensor([[across, down], [False, False]])
    moved, labels = move(image, mask, still(2, flip=flip))
    expected_image, expected_mask = image[0].numpy(), mask[0].numpy()
    if across:
        expected_image, expected_mask = expected_image[:, :, ::-1], expected_mask[:, ::-1]
    if down:
        expected_image, expected_mask = expected_image[:, ::-1], expected_mask[::-1]
    assert np.array_equal(moved[0].numpy(), expected_image)
    assert np.array_equal(labels[0].numpy(), expected_mask)
    assert torch.equal(moved[1], image[1])
    assert torch.equal(labels[1], mask[1])


@given(st.integers(0, 2**31), st.tuples(st.integers(24, 70), st.integers(24, 70)))
@settings(max_examples=30, deadline=None)
def test_image_and_mask_stay_aligned(seed: int, size: tuple[int, int]) -> None:
    """An image that is its own mask: bilinear above 1/2 and nearest differ only within a pixel of an edge."""
    torch.manual_seed(seed)
    mask = (torch.nn.functional.interpolate(torch.rand(4, 1, 6, 6), size, mode="bicubic")[:, 0] > 0.5).long()
    moved, labels = move(mask[:, None].float().repeat(1, 3, 1, 1), mask, draw_motion(4, 1.0))
    flat = torch.nn.functional.max_pool2d(labels[:, None].float(), 3, 1, 1) == -torch.nn.functional.max_pool2d(
        -labels[:, None].float(), 3, 1, 1
    )
    away = flat[:, 0]
    assert away.any()
    assert torch.equal((moved[:, 0] > 0.5)[away], (labels == 1)[away])


def test_affine_equals_scipy() -> None:
    """Oracle: scipy's affine_transform in pixel coordinates, mirrored border, on a non-square image."""
    torch.manual_seed(3)
    height, width, angle, scale, shift = 40, 64, 0.17, 1.05, (0.06, -0.04)
    image = torch.rand(1, 3, height, width)
    motion = still(shift=torch.tensor([shift]), scale=torch.tensor([scale]), angle=torch.tensor([angle]))
    moved, _ = move(image, torch.zeros(1, height, width, dtype=torch.long), motion)
    # content: turned clockwise on the screen (y down), scaled, then shifted; scipy wants output -> input, in (y, x)
    forward = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(forward)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - inverse @ (centre + np.array([shift[1] * height, shift[0] * width]))
    for channel in range(3):
        expected = ndimage.affine_transform(image[0, channel].numpy(), inverse, offset, order=1, mode="reflect")
        assert np.abs(moved[0, channel].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 192), (200, 100)])
def test_turning_keeps_a_circle_a_circle(height: int, width: int) -> None:
    mask = disk(height, width, height / 2 + 6, width / 2 - 24, 20)
    image = mask[:, None].float().repeat(1, 3, 1, 1)
    _, turned = move(image, mask, still(angle=torch.tensor([0.17])))
    y, x = torch.nonzero(turned[0], as_tuple=True)
    spread = torch.cov(torch.stack([y, x]).float())
    assert turned.sum().item() == pytest.approx(mask.sum().item(), rel=0.02)
    assert spread[0, 0].item() == pytest.approx(spread[1, 1].item(), rel=0.03)
    assert abs(spread[0, 1].item()) < 0.03 * spread[0, 0].item()
    cos, sin = np.cos(0.17), np.sin(0.17)
    expected = height / 2 + sin * -24 + cos * 6, width / 2 + cos * -24 - sin * 6
    assert centroid(turned) == pytest.approx(expected, abs=0.3)


def test_shift_and_scale_mean_what_they_say() -> None:
    mask = disk(100, 200, 50, 100, 20)
    image = mask[:, None].float().repeat(1, 3, 1, 1)
    _, shifted = move(image, mask, still(shift=torch.tensor([[0.05, -0.1]])))
    assert centroid(shifted) == pytest.approx((40, 110), abs=0.01)
    _, larger = move(image, mask, still(scale=torch.tensor([1.5])))
    assert larger.sum().item() == pytest.approx(1.5**2 * mask.sum().item(), rel=0.02)


def test_flip_comes_before_the_shift() -> None:
    mask = disk(64, 64, 32, 16, 6)
    motion = still(flip=torch.tensor([[True, False]]), shift=torch.tensor([[0.125, 0.0]]))
    _, moved = move(mask[:, None].float(), mask, motion)
    assert centroid(moved) == pytest.approx((32, 56), abs=0.01)


@given(st.integers(0, 2**31), st.sampled_from(FIELDS), st.tuples(st.integers(20, 90), st.integers(20, 90)))
@settings(max_examples=30, deadline=None)
def test_distortion_is_bounded_and_does_not_fold(seed: int, field: tuple[int, float], size: tuple[int, int]) -> None:
    cells, amplitude = field
    torch.manual_seed(seed)
    nodes = (torch.randint(0, 2, (2, 2, cells + 3, cells + 3)) * 2.0 - 1) * amplitude  # the extremes
    d = displacement(nodes, size)
    assert d.shape == (2, *size, 2)
    assert d.abs().max() <= amplitude + 1e-6
    y_slope, x_slope = d.diff(dim=1)[:, :, :-1] * size[0], d.diff(dim=2)[:, :-1] * size[1]
    determinant = (1 + x_slope[..., 0]) * (1 + y_slope[..., 1]) - x_slope[..., 1] * y_slope[..., 0]
    assert determinant.min() > 0


def test_constant_nodes_shift_everything() -> None:
    d = displacement(torch.full((1, 2, 8, 8), 0.03), (17, 31))
    assert torch.allclose(d, torch.full_like(d, 0.03), atol=1e-6)


def test_displacement_moves_content_the_way_it_says() -> None:
    """What is read lies .05 of the width to the right, so content moves left, in x only."""
    mask = disk(100, 200, 50, 100, 20)
    nodes = torch.zeros(1, 2, 8, 8)
    nodes[:, 0] = 0.05
    _, moved = move(mask[:, None].float(), mask, still(nodes=(nodes,)))
    assert centroid(moved) == pytest.approx((50, 90), abs=0.01)


def test_rows_do_not_influence_each_other() -> None:
    torch.manual_seed(5)
    image, mask = torch.rand(12, 3, 40, 56), torch.randint(0, 4, (12, 40, 56))
    motion = draw_motion(12, 0.5)
    assert 0 < motion.resampled.sum() < 12
    moved, labels = move(image, mask, motion)
    for row in range(12):
        one = Motion(
            *(
                tuple(n[row : row + 1] for n in part) if isinstance(part, tuple) else part[row : row + 1]
                for part in motion
            )
        )
        alone, alone_labels = move(image[row : row + 1], mask[row : row + 1], one)
        assert torch.allclose(alone[0], moved[row], atol=1e-6)
        assert torch.equal(alone_labels[0], labels[row])


def test_channels_last_is_kept() -> None:
    torch.manual_seed(0)
    image = torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    moved, _ = move(image, torch.zeros(4, 16, 16, dtype=torch.long), draw_motion(4, 1.0))
    assert moved.is_contiguous(memory_format=torch.channels_last)


def test_drawn_parameters_have_the_published_ranges_and_rates() -> None:
    torch.manual_seed(0)
    motion = draw_motion(20_000, 0.5)
    assert motion.flip.float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    moves = motion.angle != 0
    assert moves.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(moves, motion.shift.any(1))
    assert 0.062 < motion.shift.abs().max() <= 0.0625
    assert 0.0495 < (motion.scale - 1).abs().max() <= 0.0501
    assert 0.99 < motion.angle.abs().max() / np.radians(10) <= 1.0001
    coarse, fine = (n.flatten(1).any(1) for n in motion.nodes)
    assert not (coarse & fine).any()
    assert coarse.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert fine.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert [n.abs().max().item() for n in motion.nodes] == pytest.approx([0.05, 0.025], rel=0.01)
    assert not torch.stack([n.flatten(1).any(1) for n in draw_motion(100, 0.0).nodes]).any()
