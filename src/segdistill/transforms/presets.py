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

from ..types import Batch, UserError
from .geometry import draw_motion, move
from .intensity import cut_holes, draw_holes, draw_light, relight


@dataclass(frozen=True)
class Preset:
    """One kind of augmentation; shift-scale-rotate is the same in all. Call it with a batch of any size."""

    light: float  # probability of brightness-contrast
    distortion: float  # probability of a smooth distortion, half of them coarse (grid), half fine (elastic)
    holes: tuple[int, int]  # fewest, most
    dropout: float  # probability of holes
    view: bool = False  # fill `view`, see `with_view`
    erases: bool = False  # the label under a hole becomes background: KnowSAM's released code
    flips: tuple[bool, bool] = (True, True)  # mirrored in x, in y, each with probability .5
    turns: bool = False  # square images are also transposed with probability .5: with both flips, any quarter turn

    def __call__(self, batch: Batch) -> Batch:
        """Augment image and mask; a pure function of the batch and torch's seed."""
        rows = len(batch.image)
        image, mask = move(batch.image, batch.mask, draw_motion(rows, self.distortion, self.flips))
        seen = relight(image, draw_light(rows, self.light))
        holes = draw_holes(rows, self.holes, self.dropout)
        seen = cut_holes(seen, holes)
        if self.erases:
            mask = cut_holes(mask[:, None].float(), holes)[:, 0].long()
        view = relight(image, draw_light(rows, 1.0)) if self.view else batch.view
        done = batch._replace(image=seen, mask=mask, view=view)
        return _turned(done) if self.turns and seen.shape[-2] == seen.shape[-1] else done


weak = Preset(light=0.2, distortion=0.0, holes=(5, 8), dropout=0.5)
weak_turned = replace(weak, turns=True)
strong = Preset(light=0.6, distortion=0.5, holes=(10, 20), dropout=0.7)


def evaluation(batch: Batch) -> Batch:
    """The batch as it is."""
    return batch


def with_view(preset: Preset) -> Preset:
    """The preset, filling `view`: the image's geometry, brightness-contrast of its own in every row, no holes."""
    return replace(preset, view=True)


@dataclass(frozen=True)
class BySupervision:
    """One preset for labelled rows, one for the rest; the order of rows stays."""

    labelled: Callable[[Batch], Batch]
    other: Callable[[Batch], Batch]

    def __call__(self, batch: Batch) -> Batch:
        """Augment each kind by its own; a pure function of the batch and torch's seed."""
        known = batch.known
        order = sorted(range(len(known)), key=lambda row: not known[row])
        first = self.labelled(_rows(batch, order[: sum(known)]))
        second = self.other(_rows(batch, order[sum(known) :]))
        joined = Batch(*(_joined(a, b) for a, b in zip(first, second, strict=True)))
        return _rows(joined, sorted(range(len(order)), key=order.__getitem__))


def with_flips(augment: Callable[[Batch], Batch], flips: str) -> Callable[[Batch], Batch]:
    """The augmentation with only these flips, a key of FLIPS; quarter turns need both.

    Raises:
        UserError: The flips of an augmentation that is none of these cannot be known.
    """
    if flips == "both" or augment is evaluation:
        return augment
    if isinstance(augment, BySupervision):
        return BySupervision(with_flips(augment.labelled, flips), with_flips(augment.other, flips))
    if isinstance(augment, Preset):
        return replace(augment, flips=FLIPS[flips], turns=False)
    raise UserError(f"--flips {flips}: this method's augmentation is its own; leave the option out")


weak_strong = BySupervision(weak, strong)
released_weak_strong = BySupervision(replace(weak, erases=True), replace(strong, erases=True))

FLIPS = {"both": (True, True), "horizontal": (True, False), "vertical": (False, True), "none": (False, False)}  # x, y
PRESETS: dict[str, Callable[[Batch], Batch]] = {
    "weak": weak,
    "strong": strong,
    "weak_strong": weak_strong,
    "evaluation": evaluation,
}


def _turned(batch: Batch) -> Batch:
    turned = (torch.rand(len(batch.image)) < 0.5).to(batch.image.device)[:, None, None]
    view = None if batch.view is None else torch.where(turned[:, None], batch.view.mT, batch.view)
    return batch._replace(
        image=torch.where(turned[:, None], batch.image.mT, batch.image),
        mask=torch.where(turned, batch.mask.mT, batch.mask),
        view=view,
    )


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    index = torch.tensor(rows, dtype=torch.long).to(batch.image.device, non_blocking=True)
    fields = [None if field is None else field[index] for field in batch[:-1]]
    return Batch(*fields)._replace(supervised=tuple(batch.known[row] for row in rows))  # type: ignore[arg-type]


def _joined(first: Any, second: Any) -> Any:
    """Tensors one below the other; None where either has none; the host's tuples one after the other."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.cat([first, second])
    return first + second if isinstance(first, tuple) else None
