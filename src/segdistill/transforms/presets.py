"""Weak, strong and evaluation: KnowSAM's augmentation, on a whole batch, with the label kept under a hole.

The values are those of KnowSAM's released code (albumentations; its `build_weak_strong_transforms`): .2 and .6 are how
often brightness-contrast acts; how far is albumentations' default, .2. Two differences: a hole leaves the label alone,
and "elastic" is a smooth field of 10 x 10 cells. The released elastic moves three points by up to 50 pixels at 256, a
random affine that can flatten an image, and bends nothing (its own field stays below .05 pixel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
        known = batch.labelled.cpu()
        order = torch.cat([known.nonzero()[:, 0], (~known).nonzero()[:, 0]])
        first = labelled(_rows(batch, order[: int(known.sum())]))
        second = other(_rows(batch, order[int(known.sum()) :]))
        pairs = zip(first, second, strict=True)
        joined = Batch(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))  # type: ignore[arg-type]
        return _rows(joined, order.argsort())

    return augment


weak_strong = by_supervision(weak, strong)
released_weak_strong = by_supervision(replace(weak, erases=True), replace(strong, erases=True))

PRESETS: dict[str, Callable[[Batch], Batch]] = {
    "weak": weak,
    "strong": strong,
    "weak_strong": weak_strong,
    "evaluation": evaluation,
}


def _rows(batch: Batch, index: torch.Tensor) -> Batch:
    index = index.to(batch.image.device)
    return Batch(*(None if field is None else field[index] for field in batch))  # type: ignore[arg-type]
