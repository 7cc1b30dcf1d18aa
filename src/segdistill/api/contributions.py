"""What a method may add to its run: other students, and remarks for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..data.batches import Dataset
from ..deploy.artefact import save_student
from ..deploy.card import Card
from ..engine.evaluator import Evaluation
from ..models.students import student_spec
from ..types import Remarks

ROWS = 4  # labelled and other training rows each that remarks may be about


def save_scored(folder: Path, network: nn.Module, card: Card, score: Callable[[Path], Evaluation]) -> Evaluation:
    """Write a student, score what was written, and write it again with its scores on the card."""
    save_student(folder, network, card)
    evaluation = score(folder)
    save_student(folder, network, replace(card, scores=evaluation.summary))
    return evaluation


def other_students(run: Path, method: nn.Module, card: Card, score: Callable[[Path], Evaluation]) -> dict[str, Any]:
    """The method's `students` as `RUN/students/NAME`; their scores and sizes by name."""
    students: Mapping[str, nn.Module] = getattr(method, "students", {})
    found = {}
    for name, network in students.items():
        spec = student_spec(network)
        its_card = replace(card, name=spec.name, arguments=spec.arguments)
        mean = save_scored(run / "students" / name, network, its_card, score).summary["mean"]
        scores = {metric: {key: mean[metric][key] for key in ("mean", "low", "high")} for metric in ("dice", "hd95")}
        found[name] = scores | {"parameters": _size(network)}
    return found


def method_remarks(method: nn.Module, log: Sequence[Mapping[str, Any]], data: Dataset) -> Remarks:
    """The method's `remarks` on a few training rows, evenly spread; none where it has nothing to say."""
    remarks: Callable[[Sequence[Mapping[str, Any]], Any], Remarks] | None = getattr(method, "remarks", None)
    if remarks is None:
        return Remarks((), ())
    with torch.inference_mode():
        return remarks(log, data.batch(np.concatenate(list(_few(data)))))


def better_beside(method: nn.Module, log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The best of the other students, if it is no larger and validation, where it chose the weights, ranks it first."""
    students: Mapping[str, nn.Module] = getattr(method, "students", {})
    own, sizes = _size(cast(nn.Module, method.student)), {name: _size(network) for name, network in students.items()}
    validated = [entry for entry in log if "validation" in entry]
    last = [entry for entry in validated if entry["stage"] == validated[-1]["stage"]]
    chosen = max(last, key=lambda entry: entry["validation"]["dice"], default={})
    watched = {name: dice for name, dice in chosen.get("watched", {}).items() if sizes.get(name, own + 1) <= own}
    name = max(watched, key=lambda name: watched[name], default=None)
    if name and watched[name] > chosen["validation"]["dice"]:
        yield (
            f"students/{name} may be the better one to ship: validation Dice {watched[name]:.3f}, {sizes[name]:,} "
            f"parameters; student/ has {chosen['validation']['dice']:.3f}, {own:,}."
        )


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _few(data: Dataset) -> Iterator[np.typing.NDArray[np.int64]]:
    for labelled in (True, False):
        numbers = data.numbers("train", labelled=labelled)
        yield numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), ROWS)).astype(int)]
