"""From row numbers to a Batch on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
        annotated: Data set -> for each class whether its masks would show it; a set that is not named shows all.
    """

    cache: Cache
    rows: Sequence[Row]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    annotated: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets, in the order of their rows."""
        return tuple(dict.fromkeys(row.dataset for row in self.rows))

    @cached_property
    def modality(self) -> NDArray[np.int64]:
        """(N,) the modality of every row, as an index into `modalities`."""
        places = {name: index for index, name in enumerate(self.modalities)}
        return np.fromiter((places[row.modality] for row in self.rows), np.int64, len(self.rows))

    def marks(self, row: Row) -> tuple[bool, ...]:
        """Per class, whether the row's data set annotates it."""
        return self.annotated.get(row.dataset, (True,) * len(self.classes))

    @cached_property
    def modality_classes(self) -> tuple[tuple[int, ...], ...]:
        """Per modality, the indices of the foreground classes that any of its rows annotates."""
        held = [{self.marks(row) for row in self.rows if row.modality == name} for name in self.modalities]
        foreground = range(1, len(self.classes))
        return tuple(tuple(k for k in foreground if any(m[k] for m in marks)) for marks in held)

    def numbers(self, split: str, *, labelled: bool) -> NDArray[np.int64]:
        """Numbers of the rows of a split that have (or lack) a mask."""
        chosen = (row.split == split and (row.mask is not None) == labelled for row in self.rows)
        return np.flatnonzero(np.fromiter(chosen, bool, len(self.rows)))

    @cached_property
    def validated(self) -> NDArray[np.int64]:
        """Numbers of the validation rows with a mask; none where all these are empty: Dice would choose nothing."""
        numbers = self.numbers("val", labelled=True)
        parts = np.array_split(numbers, len(numbers) // 64 + 1)
        return numbers if any(self.cache.masks[part].any() for part in parts) else numbers[:0]

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
        supervised = tuple(self.rows[i].mask is not None for i in numbers)
        labelled = torch.tensor(supervised, dtype=torch.bool, device=device)
        return Batch(
            image=image.permute(0, 3, 1, 2).float().div_(255),
            view=None,
            mask=mask * labelled[:, None, None],
            labelled=labelled,
            classes=torch.tensor([self.marks(self.rows[i]) for i in numbers], dtype=torch.bool, device=device),
            modality=torch.as_tensor(self.modality[numbers], device=device),
            index=torch.as_tensor(numbers, device=device),
            supervised=supervised,
        )


class TrainingBatches:
    """Training batches by position: the sampler over a dataset's training rows.

    `balance` is the sampler's: 0 draws rows alike, 1 draws from every modality equally often.
    """

    def __init__(self, dataset: Dataset, seed: int, balance: float = 0.0) -> None:
        self.dataset = dataset
        self.seed = seed
        self.balance = balance
        self.labelled = dataset.numbers("train", labelled=True)
        self.others = dataset.numbers("train", labelled=False)

    def at(self, stage: int, counts: tuple[int, int], position: int, device: torch.device | str) -> Batch:
        """The batch of (labelled, other) rows for the position-th draw of a stage."""
        numbers = batch_rows(
            self.labelled,
            self.others,
            counts,
            position=position,
            key=(self.seed, stage),
            groups=self.dataset.modality if self.balance else None,
            balance=self.balance,
        )
        return self.dataset.batch(numbers, device)
