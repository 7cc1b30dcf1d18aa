"""Final scores: every image at its original resolution, through the same predictor that ships."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.cache import read_labels
from ..data.labels import LabelMapping
from ..data.manifest import Row
from ..deploy.predictor import Predictor
from ..formats import read_image, replacing
from ..metrics.calibration import Calibration
from ..metrics.scores import METRICS, score_image
from ..metrics.summary import summarise
from ..types import UserError

TABLE = ("image", "dataset", "patient", "modality", "class", *METRICS, "tp", "fp", "fn", "tn")
FLAGS = ("empty_reference", "empty_prediction")


@dataclass(frozen=True)
class Case:
    """One image to score; label maps (H, W) of class indices at its original size."""

    name: str
    row: Row
    prediction: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None = None  # (C, H, W)
    seconds: float | None = None  # spent predicting


@dataclass(frozen=True)
class Evaluation:
    """The per-image table and its summary."""

    scores: list[dict[str, Any]]  # score_image's rows, each with image, dataset, patient, modality
    summary: dict[str, Any]  # metrics.summarise, with "ece" and "ms_per_image"
    names: dict[str, Row]  # image name in the table -> its row


def predicted_cases(predictor: Predictor, rows: Sequence[Row], mapping: LabelMapping, root: Path) -> Iterator[Case]:
    """Predict each row of a data set beside its reference mask."""
    for row in rows:
        image = read_image(row.image)
        start = time.perf_counter()
        prediction = predictor.predict(image)
        seconds = time.perf_counter() - start
        if row.mask is None:
            raise UserError(f"{row.image}: has no mask to score against; leave it out or add its mask")
        reference = read_labels(row.mask, mapping, image.shape[:2])
        yield Case(display_name(row, root), row, prediction.labels, reference, prediction.probabilities, seconds)


def display_name(row: Row, root: Path) -> str:
    """The image's path inside its data set, else its file name."""
    return (row.image.relative_to(root) if row.image.is_relative_to(root) else Path(row.image.name)).as_posix()


def evaluate_cases(
    cases: Iterable[Case],
    *,
    classes: Sequence[str],
    dataset: str,
    tolerance: float = 2.0,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score cases one by one and summarise them.

    Args:
        cases: What to score.
        classes: Class names, background first.
        dataset: Name in the table.
        tolerance: Of NSD, in pixels.
        seed: Of the bootstrap.
        on_progress: Called with the number of cases done.

    Raises:
        UserError: A prediction and its reference differ in size, or there is nothing to score.
    """
    scores: list[dict[str, Any]] = []
    names: dict[str, Row] = {}
    seconds: list[float] = []
    calibration = Calibration()
    for done, case in enumerate(cases, 1):
        known = {"image": case.name, "dataset": dataset, "patient": case.row.patient, "modality": case.row.modality}
        scores += [known | row for row in _score(case, len(classes), tolerance)]
        names[case.name] = case.row
        if case.probabilities is not None:
            calibration.update(case.probabilities, case.reference)
        if case.seconds is not None:
            seconds.append(case.seconds)
        if on_progress:
            on_progress(done)
    summary = summarise(scores, class_names=classes, tolerance=tolerance, seed=seed)
    summary["ece"] = calibration.ece if seconds else None
    summary["ms_per_image"] = 1000 * float(np.median(seconds)) if seconds else None
    return Evaluation([_named(row, classes) for row in scores], summary, names)


def _score(case: Case, classes: int, tolerance: float) -> list[dict[str, Any]]:
    try:
        return score_image(case.prediction, case.reference, classes=classes, tolerance=tolerance)
    except UserError as error:
        raise UserError(f"{case.name}: {error}") from None


def _named(row: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    return {**row, "class": classes[row["class"]]}


def write_scores(folder: Path, evaluation: Evaluation) -> None:
    """`scores.csv` (undefined scores are empty cells) and `summary.json` in a folder."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, (*TABLE, *FLAGS), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in evaluation.scores:
        writer.writerow({k: "" if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()})
    for name, content in (
        ("scores.csv", text.getvalue()),
        ("summary.json", json.dumps(evaluation.summary, indent=1, ensure_ascii=False)),
    ):
        with replacing(folder / name) as file:
            file.write(content.encode("utf-8"))


def extremes(evaluation: Evaluation, each: int = 3) -> list[tuple[str, str, float]]:
    """(kind, image, mean Dice) of the worst, median and best images, no image twice."""
    per_image: dict[str, list[float]] = {}
    for row in evaluation.scores:
        if not np.isnan(row["dice"]):
            per_image.setdefault(row["image"], []).append(row["dice"])
    ranked = sorted((float(np.mean(values)), name) for name, values in per_image.items())
    each = min(each, len(ranked) // 3) if len(ranked) >= 3 else len(ranked)
    middle = (len(ranked) - each) // 2
    chosen = [("worst", entry) for entry in ranked[:each]]
    if len(ranked) >= 3:
        chosen += [("median", entry) for entry in ranked[middle : middle + each]]
        chosen += [("best", entry) for entry in reversed(ranked[-each:])]
    return [(kind, name, dice) for kind, (dice, name) in chosen]
