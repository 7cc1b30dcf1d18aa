"""Weak, strong and evaluation: KnowSAM's augmentation, on a whole batch, with the label kept under a hole.

The values are those of KnowSAM's released code (albumentations; its `build_weak_strong_transforms`): .2 and .6 are how
often brightness-contrast acts; how far is albumentations' default, .2. Two differences: a hole leaves the label alone,
and "elastic" is a smooth field of 10 x 10 cells. The released elastic moves three points by up to 50 pixels at 256, a
random affine that can flatten an image, and bends nothing (its own field stays below .05 pixel).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..types import Batch
from .geometry import draw_motion, move
from .intensity import cut_holes, draw_holes, draw_light, relight


@dataclass(frozen=True)
class Preset:
    """One kind of augmentation; flips and shift-scale-rotate are the same in all. Call it with a batch of any size."""

    light: float  # probability of brightness-contrast
    distortion: float  # probability of a smooth distortion, half of them coarse (grid), half fine (elastic)
    holes: tuple[int, int]  # fewest, most
    dropout: float  # probability of holes
    view: bool = False  # fill `view`, see `with_view`
    erases: bool = False  # the label under a hole becomes background: KnowSAM's released code

    def __call__(self, batch: Batch) -> Batch:
        """Augment image and mask; a pure function of the batch and torch's seed."""
        rows = len(batch.image)
        image, mask = move(batch.image, batch.mask, draw_motion(rows, self.distortion))
        seen = relight(image, draw_light(rows, self.light))
        holes = draw_holes(rows, self.holes, self.dropout)
        seen = cut_holes(seen, holes)
        if self.erases:
            mask = cut_holes(mask[:, None].float(), holes)[:, 0].long()
        view = relight(image, draw_light(rows, 1.0)) if self.view else batch.view
        return batch._replace(image=seen, mask=mask, view=view)


weak = Preset(light=0.2, distortion=0.0, holes=(5, 8), dropout=0.5)
strong = Preset(light=0.6, distortion=0.5, holes=(10, 20), dropout=0.7)


def evaluation(batch: Batch) -> Batch:
    """The batch as it is."""
    return batch


def with_view(preset: Preset) -> Preset:
    """The preset, filling `view`: the image's geometry, brightness-contrast of its own in every row, no holes."""
    return replace(preset, view=True)


def by_supervision(labelled: Preset, other: Preset) -> Callable[[Batch], Batch]:
    """One preset for labelled rows, one for the rest; the order of rows stays."""

    def augment(batch: Batch) -> Batch:
        known = batch.known
        order = sorted(range(len(known)), key=lambda row: not known[row])
        first = labelled(_rows(batch, order[: sum(known)]))
        second = other(_rows(batch, order[sum(known) :]))
        joined = Batch(*(_joined(a, b) for a, b in zip(first, second, strict=True)))
        return _rows(joined, sorted(range(len(order)), key=order.__getitem__))

    return augment


weak_strong = by_supervision(weak, strong)
released_weak_strong = by_supervision(replace(weak, erases=True), replace(strong, erases=True))

PRESETS: dict[str, Callable[[Batch], Batch]] = {
    "weak": weak,
    "strong": strong,
    "weak_strong": weak_strong,
    "evaluation": evaluation,
}


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    index = torch.tensor(rows, dtype=torch.long).to(batch.image.device, non_blocking=True)
    fields = [None if field is None else field[index] for field in batch[:-1]]
    return Batch(*fields)._replace(supervised=tuple(batch.known[row] for row in rows))  # type: ignore[arg-type]


def _joined(first: Any, second: Any) -> Any:
    """Tensors one below the other; None where either has none; the host's tuples one after the other."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.cat([first, second])
    return first + second if isinstance(first, tuple) else None
