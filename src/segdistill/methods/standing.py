"""Who knows how much: the running Dice of some predictions on labelled rows, so that none learns from a worse one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..losses.segmentation import annotated_logits, label_map
from ..types import Batch

MARGIN = 0.02  # how far a teacher's Dice may lie behind its pupil's
MEMORY = 0.99  # of the running Dice


class Standing(nn.Module):
    """Running Dice of `count` predictions; kept in checkpoints, and the mean over processes."""

    running: Tensor
    seen: Tensor
    updates: Tensor
    averaged = ("seen",)  # written by each process's forward; the engine averages them over processes

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(count))  # on this update's batches
        self.register_buffer("running", torch.zeros(count))
        self.register_buffer("updates", torch.zeros(()))
        self.batches = 0  # of this update so far: several where gradients are accumulated

    @torch.no_grad()
    def observe(self, batch: Batch, *logits: Tensor) -> None:
        """Remember how good each is on the labelled rows of this update's batches, the mean over these."""
        dice = torch.stack([pooled_dice(z, batch) for z in logits])
        dice = torch.where(batch.labelled.any(), dice, self.running)
        self.seen.copy_(self.seen.lerp(dice, 1 / (self.batches + 1)))
        self.batches += 1

    @torch.no_grad()
    def update(self) -> None:
        """Once per optimizer update."""
        self.updates += 1
        self.batches = 0
        self.running.lerp_(self.seen, 1 - (1 - 1 / self.updates).clamp(max=MEMORY))

    def may_teach(self, teacher: int, pupil: int) -> Tensor:
        """Scalar bool: the teacher's running Dice is at most MARGIN behind the pupil's."""
        return self.running[teacher] >= self.running[pupil] - MARGIN


def pooled_dice(logits: Tensor, batch: Batch) -> Tensor:
    """Dice of the foreground classes over the pixels of all labelled rows; a class that is nowhere counts as found."""
    rows = batch.labelled[:, None, None]
    label = label_map(annotated_logits(logits, batch.classes))
    scores = []
    for k in range(1, logits.shape[1]):
        found, there = (label == k) & rows, (batch.mask == k) & rows
        scores.append((2 * (found & there).sum() + 1) / (found.sum() + there.sum() + 1))
    return torch.stack(scores).mean()
