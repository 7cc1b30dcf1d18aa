"""What a validation counts: oracle, Dice by hand on the cache's arrays. Of several sets no modality is drowned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_data, with_hidden
from two_processes import Bright, dark, validation_set

from segdistill.data.batches import Dataset
from segdistill.data.cache import Cache
from segdistill.data.rows import Row
from segdistill.engine import validation
from segdistill.engine.validation import validate


def hand_dice(data, numbers, network):
    """Mean Dice of the foreground over the rows that have or show one, image by image."""
    values = []
    for i in numbers:
        image = torch.from_numpy(data.cache.images[i]).permute(2, 0, 1)[None] / 255
        found, truth = network(image)[0].argmax(0).numpy() == 1, data.cache.masks[i] == 1
        if found.any() or truth.any():
            values.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    return np.mean(values)


def test_scored_watched_and_hidden_are_counted_by_hand():
    data = validation_set()
    found = validate(Bright(), data, torch.device("cpu"), watched=dark)
    networks = {"student": Bright(), "dark": lambda image: dark(image, None)["dark"]}
    expected = {name: hand_dice(data, range(17), network) for name, network in networks.items()}
    assert found.scores["dice"] == pytest.approx(expected["student"], abs=1e-6)
    assert found.watched == {"dark": pytest.approx(expected["dark"], abs=1e-6)}
    assert found.hidden == {
        name: pytest.approx(hand_dice(data, range(17, 20), network), abs=1e-6) for name, network in networks.items()
    }


def test_what_is_watched_sees_every_row_once():
    seen = []

    def counting(image, modality):
        seen.append(len(image))
        return {}

    validate(Bright(), validation_set(), torch.device("cpu"), watched=counting)
    assert seen == [8, 8, 1, 3]


def test_the_scored_networks_logits_may_come_from_what_is_watched():
    """Then its own pass is saved, and it is scored alike."""

    class Asleep(Bright):
        def forward(self, image, modality=None):
            raise AssertionError("not needed")

    def both(image, modality):
        return dark(image, modality) | {"student": Bright()(image)}

    data, device = validation_set(), torch.device("cpu")
    assert validate(Asleep(), data, device, watched=both) == validate(Bright(), data, device, watched=dark)


def test_of_many_hidden_rows_a_fixed_even_choice_is_seen(monkeypatch):
    monkeypatch.setattr(validation, "HIDDEN", 4)
    masks = np.ones((32, 8, 8), np.uint8)
    images = np.repeat((np.arange(32, dtype=np.uint8) * 8)[:, None, None, None], 8, 1).repeat(8, 2).repeat(3, 3)
    rows = [Row(Path("v"), Path("m"), "val"), Row(Path("l"), Path("m"), "train")]
    rows += [Row(Path(f"{i}"), None, "train", hidden=Path("m")) for i in range(2, 32)]
    seen = []

    def watching(image, modality):
        seen.append((image[:, 0, 0, 0] * 255 / 8).round().int().tolist())
        return {}

    data = Dataset(Cache(images, masks, "h"), rows, ("background", "spot"), ("",))
    validate(Bright(), data, torch.device("cpu"), watched=watching)
    assert seen == [[0], [2, 11, 21, 31]]


def test_a_training_batch_never_carries_what_the_budget_hides():
    batches = with_hidden(toy_data())
    assert (batches.dataset.cache.masks[6:10] > 0).any((1, 2)).all()
    assert batches.dataset.hidden().tolist() == [6, 7, 8, 9]
    for counts in ((2, 2), (0, 10), (6, 4)):
        for position in range(6):
            batch = batches.at(0, counts, position, "cpu")
            assert (batch.labelled == ~torch.isin(batch.index, torch.arange(6, 10))).all()
            assert not batch.mask[~batch.labelled].any()
            assert batch.mask[batch.labelled].any()
    assert batches.dataset.truth_for_reports(np.arange(6, 10)).any()


class Ones(torch.nn.Module):
    """Says class 1 everywhere."""

    def forward(self, image, modality=None):
        logits = torch.zeros(len(image), 3, *image.shape[-2:])
        logits[:, 1] = 1
        return logits


def several(rows):
    """Validation rows of (data set, modality, class everywhere in the mask); with "hidden", training rows."""
    masks = np.stack([np.full((4, 4), label, np.uint8) for _, _, label, *_ in rows])
    made = [
        Row(Path(str(i)), None, "train", modality=modality, dataset=name, hidden=Path("m"))
        if hidden
        else Row(Path(str(i)), Path("m"), "val", modality=modality, dataset=name)
        for i, (name, modality, _, *hidden) in enumerate(rows)
    ]
    marks = {"A": (True, True, False), "B": (True, False, True)}
    cache = Cache(np.zeros((len(rows), 4, 4, 3), np.uint8), masks, "")
    return Dataset(cache, made, ("background", "a", "b"), tuple(sorted({m for _, m, *_ in rows})), marks)


def test_a_class_that_a_set_does_not_annotate_costs_nothing():
    rows = [("A", "", 1), ("B", "", 0)]  # in B, "a" everywhere: nobody knows whether it is there
    scores = validate(Ones(), several(rows), torch.device("cpu")).scores
    assert scores == {"dice": 1.0, "dice_a": 1.0}


def test_every_modality_counts_once():
    rows = [("A", "xray", 1)] * 9 + [("B", "fundus", 2)]
    scores = validate(Ones(), several(rows), torch.device("cpu")).scores
    assert scores == {"dice": 0.5, "dice@fundus": 0.0, "dice@xray": 1.0, "dice_a": 1.0, "dice_b": 0.0}


def test_a_single_set_is_scored_by_image():
    rows = [("A", "xray", 1)] * 3 + [("A", "fundus", 0)]
    scores = validate(Ones(), several(rows), torch.device("cpu")).scores
    assert scores == {"dice": pytest.approx(0.75), "dice_a": pytest.approx(0.75)}


def test_empty_references_alone_score_nothing():
    """Dice would be 0 for any network that finds something, and unknown for the others."""
    found = validate(Ones(), several([("A", "", 0), ("A", "", 0), ("A", "", 1, "hidden")]), torch.device("cpu"))
    assert found == ({}, {}, {})


def twos(image, modality):
    """Another prediction: class 2 everywhere."""
    logits = torch.zeros(len(image), 3, *image.shape[-2:])
    logits[:, 2] = 1
    return {"twos": logits}


def test_what_is_watched_and_hidden_counts_as_the_scored():
    """Classes that a set does not annotate cost nothing there, and every modality counts once."""
    rows = [("A", "xray", 1)] * 9 + [("B", "fundus", 2)]
    rows += [(*row, "hidden") for row in [*rows, ("A", "xray", 0), ("B", "fundus", 0)]]
    found = validate(Ones(), several(rows), torch.device("cpu"), watched=twos)
    assert found.scores["dice"] == 0.5
    assert found.watched == {"twos": 0.5}
    # of class 1 everywhere: A has 9 of 10 right; in B only its own class 2 is asked for, and is missed once
    assert found.hidden == {"student": pytest.approx(0.45), "twos": pytest.approx((0 + 0.5) / 2)}


def test_hidden_rows_of_every_modality_are_seen(monkeypatch):
    """A small set is not left out because another one is large."""
    monkeypatch.setattr(validation, "HIDDEN", 4)
    rows = [("A", "xray", 1)] + [("A", "xray", 1, "hidden")] * 30 + [("B", "fundus", 2, "hidden")] * 3
    seen = []

    def watching(image, modality):
        seen.append(modality.tolist())
        return {}

    validate(Ones(), several(rows), torch.device("cpu"), watched=watching)
    assert seen == [[1], [0, 0, 1, 1]]
