"""Validation during training: Dice at cache size, fast, on the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.batches import Dataset
from .processes import Processes

BATCH = 8


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
) -> dict[str, float]:
    """Mean Dice of a network on the validation split, per class and over all; empty when there is nothing to score.

    Args:
        network: (image, modality) -> logits; left in eval mode.
        data: Its "val" rows with a mask are scored.
        device: Where the network is.
        check: Called before each batch, equally often on all processes; may raise to abandon the validation.
        processes: Each scores every world-th row; all get the same scores, those of one process.
    """
    processes = processes or Processes()
    numbers = data.numbers("val", labelled=True)
    if len(numbers) == 0:
        return {}
    network.eval()
    share = numbers[processes.rank :: processes.world]
    largest = len(numbers[:: processes.world])
    tables = [torch.empty(0, len(data.classes) - 1, device=device)]
    with torch.inference_mode():
        for start in range(0, largest, BATCH):
            check()
            if start < len(share):
                batch = data.batch(share[start : start + BATCH], device)
                logits = network(batch.image, batch.modality)
                table = dice_table(logits.argmax(1), batch.mask, len(data.classes))
                tables.append(table.masked_fill(~batch.classes[:, 1:], torch.nan))
    dice = torch.empty(len(numbers), len(data.classes) - 1)
    for rank, table in enumerate(processes.gather(torch.cat(tables).cpu())):
        dice[rank :: processes.world] = table
    per_class = dice.nanmean(0)
    names = (f"dice_{name}" for name in data.classes[1:])
    scores = {name: float(value) for name, value in zip(names, per_class, strict=True) if not value.isnan()}
    return _over_all(dice.nanmean(1), data, numbers) | scores


def _over_all(dice: Tensor, data: Dataset, numbers: NDArray[np.int64]) -> dict[str, float]:
    """The mean over images; of several data sets the mean over their modalities, so that none is drowned."""
    modality = data.modality[numbers]
    present = np.unique(modality)
    if len(data.datasets) < 2 or len(present) < 2:
        return {"dice": float(dice.nanmean())}
    means = torch.stack([dice[torch.from_numpy(modality == m)].nanmean() for m in present])
    named = {f"dice@{data.modalities[m]}": float(mean) for m, mean in zip(present, means, strict=True) if mean >= 0}
    return {"dice": float(means.nanmean()), **named}
