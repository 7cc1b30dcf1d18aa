"""Flips, shift-scale-rotate and smooth distortion; all that moves pixels meets in one sampling grid per row.

So an image is interpolated once, its mask is read through the same grid (nearest), and a row that is only flipped keeps
its pixels exactly. Parameters are drawn on the CPU, per row, from torch's global generator: the same on every device.

B rows, (H, W) pixels. Lengths are in sides of the image: x in widths, y in heights. Outside the image it is mirrored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FLIP = 0.5  # probability, each axis
MOVE = 0.5  # probability of shift-scale-rotate
SHIFT = 0.0625  # sides, each axis
SCALE = 0.05  # factor 1 +- this
ROTATE = math.radians(10)
FIELDS = (
    (5, 0.05),
    (10, 0.025),
)  # (cells per side, amplitude in sides): amplitude <= cell / 4 cannot fold, see `displacement`


class Motion(NamedTuple):
    """What happens to each of B rows, on the CPU."""

    flip: Tensor  # (B, 2) bool: mirrored in x, in y; before all else
    shift: Tensor  # (B, 2), content moves by this much in x, y
    scale: Tensor  # (B,) factor on the content
    angle: Tensor  # (B,) radians, content turns clockwise on the screen
    nodes: tuple[Tensor, ...]  # each (B, 2, n, n): what is read is displaced in x, y; B-spline with n - 3 cells a side

    @property
    def resampled(self) -> Tensor:
        """(B,) bool: rows for which a flip is not all."""
        bent = torch.stack([n.flatten(1).any(1) for n in self.nodes]).any(0)
        return self.shift.any(1) | (self.scale != 1) | (self.angle != 0) | bent


def draw_motion(rows: int, distortion: float, flips: tuple[bool, bool] = (True, True)) -> Motion:
    """Random motions, mirrored only in the given axes (x, y).

    `distortion` is the probability of a smooth distortion, whose field is one of FIELDS.
    """
    moves = (torch.rand(rows) < MOVE).float()
    chosen = torch.where(torch.rand(rows) < distortion, torch.randint(len(FIELDS), (rows,)), -1)
    return Motion(
        flip=(torch.rand(rows, 2) < FLIP) & torch.tensor(flips),
        shift=_uniform(rows, 2) * SHIFT * moves[:, None],
        scale=1 + _uniform(rows) * SCALE * moves,
        angle=_uniform(rows) * ROTATE * moves,
        nodes=tuple(
            _uniform(rows, 2, cells + 3, cells + 3) * amplitude * (chosen == which)[:, None, None, None]
            for which, (cells, amplitude) in enumerate(FIELDS)
        ),
    )


def move(image: Tensor, mask: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """Apply motions to image (B, C, H, W), bilinear, and mask (B, H, W), nearest; new tensors of the same types."""
    image, mask = image.clone(), mask.clone()
    for axis in (0, 1):
        rows = _where(motion.flip[:, axis], image.device)
        image[rows] = image[rows].flip(-1 - axis)
        mask[rows] = mask[rows].flip(-1 - axis)
    resampled = motion.resampled
    if resampled.any():
        rows = _where(resampled, image.device)
        grid = sampling_grid(motion, resampled, image.shape[-2:], image.device)
        image[rows] = F.grid_sample(image[rows], grid, "bilinear", "reflection", align_corners=False)
        labels = mask[rows, None].to(grid.dtype)  # class indices are small enough to be exact in float
        mask[rows] = F.grid_sample(labels, grid, "nearest", "reflection", align_corners=False)[:, 0].to(mask.dtype)
    return image, mask


def sampling_grid(motion: Motion, rows: Tensor, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each output pixel of the chosen rows, (B,) bool, is read: (R, H, W, 2), x and y, -1 to 1 over the image."""
    height, width = size
    cos, sin = motion.angle[rows].cos(), motion.angle[rows].sin()
    aspect = height / width  # the turn is one of pixels; in sides of a non-square image it is not orthogonal
    inverse = (
        torch.stack([cos, sin * aspect, -sin / aspect, cos], dim=1).view(-1, 2, 2) / motion.scale[rows, None, None]
    )
    offset = inverse @ (-2 * motion.shift[rows])[..., None]
    theta = torch.cat([inverse, offset], dim=2).to(device)
    grid = F.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)
    for nodes in motion.nodes:
        grid += 2 * displacement(nodes[rows].to(device), size)
    return grid


def displacement(nodes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cubic B-spline through random nodes (B, 2, n, n), uniform in +-a, at pixel centres: (B, H, W, 2), in sides.

    The spline is a convex combination of its nodes, so it is nowhere larger than a; its slopes are at most 2a per cell.
    With a = a quarter of a cell they are at most 1/2, so x + displacement(x) is one-to-one: objects bend, none folds.
    """
    down, across = (_spline(length, nodes.shape[-1] - 3, nodes) for length in size)
    return (down @ nodes @ across.T).permute(0, 2, 3, 1)


def _spline(length: int, cells: int, like: Tensor) -> Tensor:
    """(length, cells + 3): weight of each node at each pixel centre of a side."""
    place = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) * (cells / length)
    node = torch.arange(-1, cells + 2, device=like.device, dtype=like.dtype)
    distance = (place[:, None] - node).abs()
    return ((2 - distance).clamp(min=0) ** 3 - 4 * (1 - distance).clamp(min=0) ** 3) / 6


def _uniform(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape) - 1


def _where(flags: Tensor, device: torch.device) -> Tensor:
    """Indices of the set flags; found on the CPU so that no accelerator has to wait for them."""
    return flags.nonzero()[:, 0].to(device)
