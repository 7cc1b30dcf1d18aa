"""From row numbers to a Batch on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..types import Batch
from .cache import Cache
from .rows import Row
from .sampler import batch_rows


@dataclass(frozen=True)
class Dataset:
    """Cached rows with what the manifest knows of them.

    Attributes:
        cache: Pixels of every row.
        rows: The manifest's rows, in the cache's order.
        classes: Names of the classes, background first.
        modalities: Names that `Batch.modality` indexes.
    """

    cache: Cache
    rows: Sequence[Row]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]

    def numbers(self, split: str, *, labelled: bool) -> NDArray[np.int64]:
        """Numbers of the rows of a split that have (or lack) a mask."""
        chosen = (row.split == split and (row.mask is not None) == labelled for row in self.rows)
        return np.flatnonzero(np.fromiter(chosen, bool, len(self.rows)))

    def hidden(self) -> NDArray[np.int64]:
        """Numbers of the training rows whose truth is known and only hidden by the label budget."""
        chosen = (row.split == "train" and row.hidden is not None for row in self.rows)
        return np.flatnonzero(np.fromiter(chosen, bool, len(self.rows)))

    def truth_for_reports(self, numbers: NDArray[np.int64], device: torch.device | str = "cpu") -> torch.Tensor:
        """Masks (B, H, W), also those that the label budget hides: to be counted and shown, never to train on."""
        return torch.from_numpy(self.cache.masks[numbers]).to(device).long()

    def batch(self, numbers: NDArray[np.int64], device: torch.device | str = "cpu") -> Batch:
        """The rows as a Batch: channels_last images; the masks of unlabelled rows are zero, hidden truth included."""
        image = torch.from_numpy(self.cache.images[numbers]).to(device)
        mask = torch.from_numpy(self.cache.masks[numbers]).to(device).long()
        labelled = torch.tensor([self.rows[i].mask is not None for i in numbers], dtype=torch.bool, device=device)
        modality = [self.modalities.index(self.rows[i].modality) for i in numbers]
        return Batch(
            image=image.permute(0, 3, 1, 2).float().div_(255),
            view=None,
            mask=mask * labelled[:, None, None],
            labelled=labelled,
            classes=torch.ones(len(numbers), len(self.classes), dtype=torch.bool, device=device),
            modality=torch.tensor(modality, dtype=torch.long, device=device),
            index=torch.as_tensor(numbers, device=device),
        )


class TrainingBatches:
    """Training batches by position: the sampler over a dataset's training rows."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.labelled = dataset.numbers("train", labelled=True)
        self.others = dataset.numbers("train", labelled=False)

    def at(self, stage: int, counts: tuple[int, int], position: int, device: torch.device | str) -> Batch:
        """The batch of (labelled, other) rows for the position-th draw of a stage."""
        numbers = batch_rows(self.labelled, self.others, counts, position=position, key=(self.seed, stage))
        return self.dataset.batch(numbers, device)
