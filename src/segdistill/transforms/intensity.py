"""Brightness-contrast and coarse dropout: what changes pixels where they are. Parameters drawn on the CPU, per row.

B rows, (H, W) pixels, values in [0, 1] before and after.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LIMIT = 0.2  # albumentations' RandomBrightnessContrast(), which KnowSAM leaves at its default
HOLE = 20  # holes have 1/20 of each side


class Light(NamedTuple):
    """image * contrast + brightness, per row."""

    contrast: Tensor  # (B,)
    brightness: Tensor  # (B,)


class Holes(NamedTuple):
    """Up to K holes per row."""

    corner: Tensor  # (B, K, 2) in [0, 1): y and x of the top left, in the range where a hole lies wholly inside
    present: Tensor  # (B, K) bool


def draw_light(rows: int, probability: float) -> Light:
    """Contrast 1 +- LIMIT and brightness +- LIMIT of the full range, uniform, for a row with the given probability."""
    drawn = (2 * torch.rand(2, rows) - 1) * LIMIT * (torch.rand(rows) < probability)
    return Light(1 + drawn[0], drawn[1])


def relight(image: Tensor, light: Light) -> Tensor:
    """Image (B, 3, H, W) times contrast plus brightness, cut off at 0 and 1."""
    contrast, brightness = (value.to(image)[:, None, None, None] for value in light)
    return (image * contrast).add_(brightness).clamp_(0, 1)


def draw_holes(rows: int, count: tuple[int, int], probability: float) -> Holes:
    """`count` = fewest and most holes, equally likely all between, for a row with the given probability."""
    fewest, most = count
    drawn = torch.randint(fewest, most + 1, (rows, 1)) * (torch.rand(rows, 1) < probability)
    return Holes(torch.rand(rows, most, 2), torch.arange(most) < drawn)


def cut_holes(image: Tensor, holes: Holes) -> Tensor:
    """Image (B, C, H, W) with its holes, floor(side / 20) but at least 1 pixel wide, set to 0. They may overlap."""
    spans = []
    for axis, length in enumerate(image.shape[-2:]):
        width = max(1, length // HOLE)
        first = (holes.corner[..., axis, None] * (length - width + 1)).floor().to(image)  # (B, K, 1)
        pixel = torch.arange(length, device=image.device)
        spans.append((pixel >= first) & (pixel < first + width))
    down, across = spans  # (B, K, H), (B, K, W)
    down = down & holes.present.to(image.device)[..., None]
    covers = down.to(image.dtype).transpose(1, 2) @ across.to(image.dtype)  # how many holes lie on a pixel
    return image * (covers == 0)[:, None]
