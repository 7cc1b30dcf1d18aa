"""UGDA: KnowSAM's uncertainty-guided mixing of labelled and unlabelled images (Huang et al., TMI 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..losses.segmentation import annotated_logits
from ..models.aggregation import entropy_map
from ..types import Batch

GRID = 4  # cells per side, released


class Mixed(NamedTuple):
    """A batch whose uncertain cells came from partners."""

    image: Tensor  # (B, 3, H, W)
    label: Tensor  # (B, H, W)
    weight: Tensor  # (B, H, W), 0 where the label is not to be trusted, or of a class that not both annotate
    classes: Tensor  # (B, C): those that host and partner annotate


def mix(batch: Batch, cells: Tensor, source: Tensor, confidence: float) -> Mixed:
    """Each row's cells are overwritten by its partner's pixels and labels at the same place.

    Args:
        batch: Labelled and other rows.
        cells: (B, H, W) bool, see `uncertain_cells`.
        source: Logits (B, C, H, W) whose argmax labels the pixels of other rows.
        confidence: Probability from which that label counts.
    """
    partner = partners(batch.labelled)
    sure, guess = annotated_logits(source, batch.classes).softmax(1).max(1)
    known = batch.labelled[:, None, None]
    label = torch.where(known, batch.mask, guess)
    weight = (known | (sure >= confidence)).float()
    label, weight = (torch.where(cells, values[partner], values) for values in (label, weight))
    classes = batch.classes & batch.classes[partner]
    shared = classes.gather(1, label.flatten(1)).view_as(label)
    return Mixed(
        torch.where(cells[:, None], batch.image[partner], batch.image),
        label,
        weight * shared,  # a class that only one of the two annotates has no logit to learn from
        classes,
    )


def uncertain_cells(z: Tensor, count: int, *, lowest: bool = False) -> Tensor:
    """(B, H, W) bool: the `count` cells of the 4 x 4 grid where the entropy of softmax(z) is highest (or lowest)."""
    size = z.shape[-2:]
    mean = F.adaptive_avg_pool2d(entropy_map(z.float().softmax(1)), GRID)[:, 0].flatten(1)  # (B, 16)
    chosen = torch.zeros_like(mean).scatter(1, mean.topk(count, largest=not lowest).indices, 1.0)
    cells = chosen.view(-1, 1, GRID, GRID)
    return F.interpolate(cells, size, mode="nearest-exact")[:, 0] > 0


def partners(labelled: Tensor) -> Tensor:
    """(B,) row of each row's partner: labelled rows take from unlabelled ones and these from them, in turn."""
    partner = torch.zeros_like(labelled, dtype=torch.long)
    for host in (labelled, ~labelled):
        others_first = host.long().argsort(stable=True)  # no nonzero(): the host never waits for the device
        turn = (host.cumsum(0) - 1) % (~host).sum().clamp(min=1)
        partner = torch.where(host, others_first[turn], partner)
    return partner


def drawn(image: Tensor, cells: Tensor) -> NDArray[np.uint8]:
    """The image (3, H, W) with all but the cells (H, W) darkened, (H, W, 3)."""
    shown = image * torch.where(cells, 1.0, 0.35)
    return cast(NDArray[np.uint8], (255 * shown).round().byte().permute(1, 2, 0).cpu().numpy())


def about_mixing(log: Sequence[Mapping[str, Any]], best: float, needed: float) -> Iterator[str]:
    """When mixing began, for the report; else what it waited for: `best` validation Dice (-1: none) and that needed."""
    updates = [entry["iteration"] for entry in log if "terms" in entry]
    mixed = [entry["iteration"] for entry in log if "mix_sup" in entry.get("terms", {})]
    if mixed:
        yield f"UGDA mixed from update {mixed[0]} of {max(updates)} on."
    elif updates and best >= 0:
        yield (
            f"UGDA never mixed: it waits for a validation Dice of {needed} (mix_from_dice), and the best "
            f"was {best:.3f}."
        )
