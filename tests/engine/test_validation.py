"""Validation of several data sets: classes that a set does not annotate do not count, and no modality is drowned."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segdistill.data.batches import Dataset
from segdistill.data.cache import Cache
from segdistill.data.rows import Row
from segdistill.engine.validation import validate


class Ones(torch.nn.Module):
    """Says class 1 everywhere."""

    def forward(self, image, modality=None):
        logits = torch.zeros(len(image), 3, *image.shape[-2:])
        logits[:, 1] = 1
        return logits


def data(rows):
    """Rows of (data set, modality, class everywhere in the mask)."""
    masks = np.stack([np.full((4, 4), label, np.uint8) for _, _, label in rows])
    made = [
        Row(Path(str(i)), Path("m"), "val", modality=modality, dataset=name)
        for i, (name, modality, _) in enumerate(rows)
    ]
    marks = {"A": (True, True, False), "B": (True, False, True)}
    cache = Cache(np.zeros((len(rows), 4, 4, 3), np.uint8), masks, "")
    return Dataset(cache, made, ("background", "a", "b"), tuple(sorted({m for _, m, _ in rows})), marks)


def test_a_class_that_a_set_does_not_annotate_costs_nothing():
    rows = [("A", "", 1), ("B", "", 0)]  # in B, "a" everywhere: nobody knows whether it is there
    scores = validate(Ones(), data(rows), torch.device("cpu"))
    assert scores == {"dice": 1.0, "dice_a": 1.0}


def test_every_modality_counts_once():
    rows = [("A", "xray", 1)] * 9 + [("B", "fundus", 2)]
    scores = validate(Ones(), data(rows), torch.device("cpu"))
    assert scores == {"dice": 0.5, "dice@fundus": 0.0, "dice@xray": 1.0, "dice_a": 1.0, "dice_b": 0.0}


def test_a_single_set_is_scored_by_image():
    rows = [("A", "xray", 1)] * 3 + [("A", "fundus", 0)]
    scores = validate(Ones(), data(rows), torch.device("cpu"))
    assert scores == {"dice": pytest.approx(0.75), "dice_a": pytest.approx(0.75)}
