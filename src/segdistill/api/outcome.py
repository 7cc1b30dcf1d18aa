"""What a training leaves: the student's card, what scores it, and what a reader of the scores must know."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.audit import LEAKS
from ..data.batches import Dataset
from ..data.labels import colours
from ..deploy.artefact import save_student
from ..deploy.card import MEANINGS, Card
from ..deploy.predictor import open_predictor
from ..engine import checkpoint
from ..engine.evaluator import Evaluation, evaluate_cases, predicted_cases
from ..engine.precision import resolve_device
from ..engine.trainer import Trained
from ..models.students import student_spec
from ..types import Known, UserError
from .data import SPLITS, Loaded, scored_rows, split_table
from .options import TrainOptions, parse_size
from .pretrained import pretrained
from .references import meanings
from .runs import read_json, versions
from .terminal import bar

SIDES = ("left", "right", "l", "r")


def student_card(
    run: Path, loaded: Loaded, options: TrainOptions, config: Any, student: torch.nn.Module, known: Known | None
) -> Card:
    """The card of this student of the run, without its scores."""
    spec, data = student_spec(student), loaded.dataset
    found = read_json(run / "data" / "check.json")["findings"]
    leaks = [entry["what"] for entry in found if entry["code"] in LEAKS]  # counts; no file, no patient
    return Card(
        name=spec.name,
        arguments=spec.arguments,
        method=options.method,
        classes=data.classes,
        colours=tuple(colours(len(data.classes))),
        size=parse_size(options.size),
        licence=options.licence,
        fit=options.fit,
        modalities=data.modalities,
        neighbours=options.neighbours,
        postprocess=options.postprocess,
        data_hash=loaded.facts["hash"],
        versions=versions(),
        data={
            "name": loaded.facts["name"],
            "splits": split_table(data.rows),
            "leaks": leaks,
            MEANINGS: [mapping.to_json() for mapping in meanings(loaded.sources, data.classes, known)],
        },
        pretrained=pretrained(config),
    )


def save_last(run: Path, method: Any, trained: Trained, card: Card) -> None:
    """The last weights as a student of their own; the method has the best ones again afterwards."""
    best = {key: value.clone() for key, value in method.state_dict().items()}
    checkpoint.load_weights(trained.last, method)
    save_student(run / "student_last", method.student, card)
    method.load_state_dict(best)


def scoring(run: Path, loaded: Loaded, options: TrainOptions) -> tuple[str, Callable[[Path], Evaluation]]:
    """The split to score, and what scores a student's folder on it."""
    split, rows = scored_rows(loaded.dataset.rows)

    def score(folder: Path) -> Evaluation:
        if not rows:
            raise UserError(f"{run}: no labelled test or validation image to score; the student is in {folder}")
        predictor = open_predictor(folder, resolve_device(options.device))
        with bar(f"scoring {folder.name} on {split}") as progress:
            evaluation = evaluate_cases(
                predicted_cases(predictor, rows, loaded.sources, among=loaded.dataset.rows),
                classes=loaded.dataset.classes,
                modalities=predictor.card.modalities,
                tolerance=options.tolerance,
                seed=options.seed,
                on_progress=lambda done: progress(done, len(rows)),
            )
        evaluation.summary["run"] = {"scored split": split}  # for the card; the run adds to it
        return evaluation

    return split, score


def check_findings(run: Path) -> list[str]:
    """What the data check found, from errors to warnings."""
    found = read_json(run / "data" / "check.json")["findings"]
    files = [f" ({', '.join(entry['files'])})" if entry["files"] else "" for entry in found]
    return [f"{entry['what']}{named}: {entry['way_out']}" for entry, named in zip(found, files, strict=True)]


def caveats(data: Dataset, flips: str) -> list[str]:
    """What a reader of the scores must know; `flips` are those of the training."""
    labelled = {split: {row.dataset for row in data.rows if row.split == split and row.mask} for split in SPLITS}
    lines = []
    if not labelled["val"]:
        lines.append("no labelled validation image: the last weights are kept, not the best")
    elif not len(data.validated):
        lines.append("no validation mask shows any foreground: the last weights are kept, not the best")
    if not labelled["test"]:
        lines.append("no labelled test image: scores are on the validation split, which chose the weights (optimistic)")
    elif unscored := [name for name in data.datasets if name not in labelled["test"]]:
        lines.append(f"no labelled test image in {', '.join(unscored)}: nothing is scored there")
    if flips in ("both", "horizontal") and (sided := _differ_by_side(data.classes)):
        lines.append(
            f"{', '.join(sided)}: training images are mirrored at random; if only the side tells these classes apart, "
            "train with --flips vertical or none"
        )
    if not any(row.patient for row in data.rows):
        kind = "volumes" if all(row.volume for row in data.rows) else "images"
        lines.append(
            f"patients are unknown: {kind} of one patient may be in several splits, and intervals are over {kind}"
        )
    return lines


def _differ_by_side(classes: Sequence[str]) -> list[str]:
    """Classes whose names are others' but for left and right."""
    places: dict[tuple[str, ...], list[str]] = {}
    for name in classes:
        words = re.findall(r"[^\W_]+", name.lower())
        places.setdefault(tuple("*" if word in SIDES else word for word in words), []).append(name)
    return [name for words, names in places.items() if "*" in words and len(names) > 1 for name in names]
