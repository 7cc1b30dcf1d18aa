"""Validation during training: Dice at cache size, fast, on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.batches import Dataset
from ..losses.segmentation import label_map
from .processes import Processes

BATCH = 8
HIDDEN = 64  # rows whose truth the label budget hides, looked at per validation
SCORED = "student"  # name of the scored network beside the watched ones

Predictions = Callable[[Tensor, Tensor], dict[str, Tensor]]


class Validation(NamedTuple):
    """Mean Dice, on validation rows unless said otherwise."""

    scores: dict[str, float]  # of the scored network: "dice" and per class; empty when there is nothing to score
    watched: dict[str, float]  # of other predictions, by name
    hidden: dict[str, float]  # of all of them on training rows whose truth the label budget hides


def dice_table(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Dice per image and foreground class, (B, C - 1), of label maps (B, H, W); NaN where both are empty."""
    rows = []
    for k in range(1, classes):
        p, y = prediction == k, target == k
        total = p.sum((1, 2)) + y.sum((1, 2))
        rows.append(torch.where(total > 0, 2 * (p & y).sum((1, 2)) / total, torch.nan))
    return torch.stack(rows, 1).float()


def validate(
    network: nn.Module,
    data: Dataset,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
    processes: Processes | None = None,
    watched: Predictions | None = None,
) -> Validation:
    """Dice of a network and of what else is watched, on the validation split and where the budget hides the truth.

    Args:
        network: (image, modality) -> logits; left in eval mode.
        data: Its "val" rows with a mask are scored, unless all those masks are empty; of those with a hidden mask up to
            64, the same ones each time.
        device: Where the network is.
        check: Called before each batch, equally often on all processes; may raise to abandon the validation.
        processes: Each scores every world-th row; all get the same scores, those of one process.
        watched: Other predictions, as `Stage.watched`.
    """
    processes = processes or Processes()
    numbers = data.validated
    if len(numbers) == 0:
        return Validation({}, {}, {})
    network.eval()

    def predict(image: Tensor, modality: Tensor) -> dict[str, Tensor]:
        seen = watched(image, modality) if watched else {}
        return seen if SCORED in seen else seen | {SCORED: network(image, modality)}

    tables = _tables(predict, numbers, data, device, check, processes)
    per_class = tables[SCORED].nanmean(0)
    names = (f"dice_{name}" for name in data.classes[1:])
    classes = {name: float(value) for name, value in zip(names, per_class, strict=True) if not value.isnan()}
    scores = _over_all(tables.pop(SCORED), data, numbers) | classes
    chosen = _spread(data)
    hidden = _tables(predict, chosen, data, device, check, processes)
    return Validation(scores, _means(tables, data, numbers), _means(hidden, data, chosen))


def _tables(
    predict: Predictions,
    numbers: NDArray[np.int64],
    data: Dataset,
    device: torch.device,
    check: Callable[[], None],
    processes: Processes,
) -> dict[str, Tensor]:
    """`dice_table` of the rows for each prediction, by name, on the CPU; in a pass shared by the processes.

    NaN also where a row's data set does not annotate the class.
    """
    share = numbers[processes.rank :: processes.world]
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, len(numbers[:: processes.world]), BATCH):
            check()
            rows = share[start : start + BATCH]
            if len(rows) == 0:
                continue
            batch, target = data.batch(rows, device), data.truth_for_reports(rows, device)
            for name, logits in predict(batch.image, batch.modality).items():
                table = dice_table(label_map(logits), target, len(data.classes))
                parts.setdefault(name, []).append(table.masked_fill(~batch.classes[:, 1:], torch.nan))
    mine = {name: torch.cat(part).cpu() for name, part in parts.items()}
    gathered = processes.gather(mine)
    whole = {name: torch.empty(len(numbers), len(data.classes) - 1) for name in gathered[0]}
    for rank, tables in enumerate(gathered):
        for name, table in tables.items():
            whole[name][rank :: processes.world] = table
    return whole


def _over_all(table: Tensor, data: Dataset, numbers: NDArray[np.int64]) -> dict[str, float]:
    """Mean over classes, then images; of several data sets the mean over their modalities, so that none is drowned."""
    dice, modality = table.nanmean(1), data.modality[numbers]
    present = np.unique(modality)
    if len(data.datasets) < 2 or len(present) < 2:
        return {"dice": float(dice.nanmean())}
    means = torch.stack([dice[torch.from_numpy(modality == m)].nanmean() for m in present])
    named = {f"dice@{data.modalities[m]}": float(mean) for m, mean in zip(present, means, strict=True) if mean >= 0}
    return {"dice": float(means.nanmean()), **named}


def _means(tables: dict[str, Tensor], data: Dataset, numbers: NDArray[np.int64]) -> dict[str, float]:
    """The mean of each table, taken as the scored one's; without those that have nothing to find."""
    means = {name: _over_all(table, data, numbers)["dice"] for name, table in tables.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def _spread(data: Dataset) -> NDArray[np.int64]:
    """Up to HIDDEN rows whose truth the budget hides, evenly; of several data sets as many of each modality."""
    numbers = data.hidden()
    groups = data.modality[numbers] if len(data.datasets) > 1 else np.zeros_like(numbers)
    parts = [numbers[groups == group] for group in np.unique(groups)]
    each = max(1, HIDDEN // max(1, len(parts)))
    places = [np.linspace(0, len(part) - 1, min(len(part), each)).astype(int) for part in parts]
    return np.concatenate([numbers[:0], *(part[place] for part, place in zip(parts, places, strict=True))])
