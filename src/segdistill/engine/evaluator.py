"""Final scores: every image or volume at its original resolution, through the same predictor that ships."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.cache import read_labels
from ..data.labels import LabelMapping
from ..data.rows import Row
from ..data.several import Source
from ..data.volumes import read_neighbours, volumes, voxel_spacing, with_neighbours
from ..deploy.predictor import Predictor
from ..deploy.routing import SURE
from ..deploy.slices import route_together
from ..formats import read_image, replacing
from ..metrics.calibration import Calibration
from ..metrics.polyp import CURVE, POLYP_SCORES, polyp_scores
from ..metrics.routing import summarise_routing
from ..metrics.scores import METRICS, score_image
from ..metrics.summary import summarise
from ..types import UserError

TABLE = ("image", "dataset", "patient", "modality", "class", *METRICS, "tp", "fp", "fn", "tn")
FLAGS = ("empty_reference", "empty_prediction")


@dataclass(frozen=True)
class Case:
    """One image (H, W) or volume (N, H, W) to score: class indices at its original size."""

    name: str
    row: Row  # what a report shows of it: of a volume the slice with most foreground
    prediction: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    spacing: tuple[float, ...] | None = None  # mm per axis
    calibration: Calibration | None = None
    seconds: tuple[float, ...] = ()  # spent predicting, per image
    annotated: tuple[bool, ...] | None = None  # per class, whether the reference would show it; None: all
    routing: NDArray[np.float32] | None = None  # probability of each modality, where the student tells them apart
    polyp: Mapping[str, Any] | None = None  # metrics.polyp_scores of an image with one foreground class


@dataclass(frozen=True)
class Evaluation:
    """The table, one row per class of an image or volume, and its summary."""

    scores: list[dict[str, Any]]  # score_image's rows (and polyp_scores), with image, shown, dataset, patient, modality
    # metrics.summarise, with "kind", "ece", "calibration" (its table), "ms_per_image" and, if it routes, "routing"
    summary: dict[str, Any]
    names: dict[str, Row]  # name as shown, unlike any other's -> the row to show


class Part(NamedTuple):
    """One image of a case."""

    prediction: NDArray[np.uint8]  # (H, W)
    reference: NDArray[np.uint8]  # (H, W)
    seconds: float | None = None
    routing: NDArray[np.float32] | None = None
    polyp: Mapping[str, Any] | None = None


def told_modality(predictor: Predictor, row: Row) -> int | None:
    """The place of the row's modality in the student; None where the student or nobody knows it, or needs none.

    A student may have an unnamed modality, that of its first training; a row without one may be of any.
    """
    names = predictor.card.modalities
    return names.index(row.modality) if predictor.routes and row.modality and row.modality in names else None


def predicted_cases(
    predictor: Predictor,
    rows: Sequence[Row],
    sources: Mapping[str, Source],
    *,
    among: Sequence[Row] = (),
    polyp: bool = False,
) -> Iterator[Case]:
    """Predict the rows beside their reference masks; the slices of a volume make one case.

    A student that tells modalities apart is told each row's; where it does not know that one, it is routed by its
    classifier, a volume as a whole.

    Args:
        predictor: What ships: its label maps are scored as they are.
        rows: With masks.
        sources: The data sets that the rows name.
        among: All rows of these data sets; the neighbours of slices are among them.
        polyp: Also the polyp literature's scores, of images and a student of one foreground class only.

    Raises:
        UserError: A row without a mask, slices that make no volume, or no volume for a student that needs them.
    """
    around = with_neighbours(rows, among) if predictor.card.neighbours else {}
    found = _found_together(predictor, rows, around)
    calibration = Calibration()

    def predict(row: Row) -> Part:
        image = _read(row, around)
        told = told_modality(predictor, row)
        start = time.perf_counter()
        prediction = predictor.predict(image, found(row) if told is None else told)
        seconds = time.perf_counter() - start
        mapping = sources[row.dataset].mapping
        if row.mask is None or mapping is None:
            raise UserError(f"{row.image}: has no mask to score against; leave it out or add its mask")
        reference = read_labels(row.mask, mapping, image.shape[:2])
        calibration.update(_of_annotated(prediction.probabilities, mapping), reference)
        scores = polyp_scores(prediction.probabilities[1], reference == 1) if polyp else None
        return Part(prediction.labels, reference, seconds, prediction.routing, scores)

    for case in cases_of(rows, predict, {name: source.root for name, source in sources.items()}):
        mapping = sources[case.row.dataset].mapping
        yield replace(case, calibration=calibration, annotated=mapping.marks() if mapping else None)
        calibration = Calibration()


def _of_annotated(probabilities: NDArray[np.float32], mapping: LabelMapping) -> NDArray[np.float32]:
    """Probabilities (C, H, W); what a data set's masks do not show is background there."""
    marks = np.array(mapping.marks())
    if marks.all():
        return probabilities
    seen = probabilities * marks[:, None, None].astype(np.float32)
    seen[0] += probabilities[~marks].sum(0)
    return seen


def _read(row: Row, around: Mapping[Path, Any]) -> NDArray[np.uint8]:
    return read_neighbours(around[row.image]) if around else read_image(row.image)


def _found_together(
    predictor: Predictor, rows: Sequence[Row], around: Mapping[Path, Any]
) -> Callable[[Row], int | None]:
    """The modality that the classifier finds for a row's volume, all of it; None for an image alone."""
    unknown = [row for row in rows if predictor.routes and row.volume and told_modality(predictor, row) is None]
    groups = {(row.dataset, row.volume): [] for row in unknown}  # type: dict[tuple[str, str], list[Row]]
    for row in unknown:
        groups[row.dataset, row.volume].append(row)

    @cache
    def of_volume(key: tuple[str, str]) -> int:
        return int(route_together(predictor, (_read(row, around) for row in groups[key])).argmax())

    def of_row(row: Row) -> int | None:
        key = (row.dataset, row.volume)
        return of_volume(key) if key in groups else None

    return of_row


def cases_of(rows: Sequence[Row], look: Callable[[Row], Part], roots: Mapping[str, Path]) -> Iterator[Case]:
    """The images of `look`, those of a volume stacked; in mm where the spacing of every row is known.

    `roots` are the folders of the data sets that the rows name.
    """
    groups = volumes(rows)
    in_mm = all(voxel_spacing(group) for group in groups)
    for group in groups:
        parts = [look(row) for row in group]
        seconds = tuple(part.seconds for part in parts if part.seconds is not None)
        spacing = voxel_spacing(group) if in_mm else None
        thought = [part.routing for part in parts if part.routing is not None]
        routing = np.mean(thought, axis=0) if thought else None
        if not group[0].volume:
            name, only = display_name(group[0], roots[group[0].dataset]), parts[0]
            both = only.prediction, only.reference
            yield Case(name, group[0], *both, spacing, None, seconds, routing=routing, polyp=only.polyp)
            continue
        if len({part.reference.shape for part in parts}) > 1:
            raise UserError(f"volume {group[0].volume}: its slices differ in size; mend the column volume")
        prediction = np.stack([part.prediction for part in parts])
        reference = np.stack([part.reference for part in parts])
        shown = group[int(np.argmax((reference > 0).sum((1, 2))))]
        yield Case(group[0].volume, shown, prediction, reference, spacing, None, seconds, None, routing)


def display_name(row: Row, root: Path) -> str:
    """The image's path inside its data set, else its file name."""
    return (row.image.relative_to(root) if row.image.is_relative_to(root) else Path(row.image.name)).as_posix()


def evaluate_cases(
    cases: Iterable[Case],
    *,
    classes: Sequence[str],
    modalities: Sequence[str] = (),
    tolerance: float = 2.0,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score cases one by one and summarise them.

    Args:
        cases: What to score; their rows name their data sets.
        classes: Class names, background first.
        modalities: Names of the modalities that the cases' "routing" is about.
        tolerance: Of NSD, in mm where the cases have a spacing, else in pixels.
        seed: Of the bootstrap.
        on_progress: Called with the number of images done.

    Raises:
        UserError: A prediction and its reference differ in size, or there is nothing to score.
    """
    scores: list[dict[str, Any]] = []
    names: dict[tuple[str, str], Row] = {}
    homes: set[str] = set()
    seconds: list[float] = []
    kinds: set[str] = set()
    units: set[str] = set()
    images = 0
    routed: list[tuple[str, NDArray[np.float32]]] = []
    calibration = Calibration()
    for case in cases:
        home = case.row.dataset
        homes.add(home)
        known = {"image": case.name, "dataset": home, "patient": case.row.patient, "modality": case.row.modality}
        scores += [known | row for row in _score(case, len(classes), tolerance)]
        names[home, case.name] = case.row
        if case.calibration is not None:
            calibration.merge(case.calibration)
        if case.routing is not None:
            routed.append((case.row.modality, case.routing))
        seconds += case.seconds
        kinds.add("image" if case.reference.ndim == 2 else "volume")
        units.add("px" if case.spacing is None else "mm")
        images += 1 if case.reference.ndim == 2 else len(case.reference)
        if on_progress:
            on_progress(images)
    kind, unit = "volume" if kinds == {"volume"} else "image", "mm" if units == {"mm"} else "px"
    summary = summarise(scores, class_names=classes, kind=kind, unit=unit, tolerance=tolerance, seed=seed)
    summary["ece"] = calibration.ece if seconds else None
    summary["calibration"] = calibration.table()
    summary["ms_per_image"] = 1000 * float(np.median(seconds)) if seconds else None
    if routed:
        true, thought = zip(*routed, strict=True)
        summary["routing"] = summarise_routing(true, thought, modalities, SURE)

    def shown(home: str, name: str) -> str:
        return f"{home}: {name}" if len(homes) > 1 else name

    table = [_named(row, classes) | {"shown": shown(row["dataset"], row["image"])} for row in scores]
    return Evaluation(table, summary, {shown(*key): row for key, row in names.items()})


def _score(case: Case, classes: int, tolerance: float) -> list[dict[str, Any]]:
    try:
        rows = score_image(
            case.prediction,
            case.reference,
            classes=classes,
            annotated=case.annotated,
            spacing=case.spacing,
            tolerance=tolerance,
        )
    except UserError as error:
        raise UserError(f"{case.name}: {error}") from None
    return [row | dict(case.polyp or {}) for row in rows]


def _named(row: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    return {**row, "class": classes[row["class"]]}


def write_scores(folder: Path, evaluation: Evaluation) -> None:
    """`scores.csv` (undefined scores are empty cells) and `summary.json` in a folder."""
    text = io.StringIO(newline="")
    polyp = POLYP_SCORES if CURVE in evaluation.scores[0] else ()
    writer = csv.DictWriter(text, (*TABLE, *FLAGS, *polyp), extrasaction="ignore", lineterminator="\n")
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
            per_image.setdefault(row["shown"], []).append(row["dice"])
    ranked = sorted((float(np.mean(values)), name) for name, values in per_image.items())
    each = min(each, len(ranked) // 3) if len(ranked) >= 3 else len(ranked)
    middle = (len(ranked) - each) // 2
    chosen = [("worst", entry) for entry in ranked[:each]]
    if len(ranked) >= 3:
        chosen += [("median", entry) for entry in ranked[middle : middle + each]]
        chosen += [("best", entry) for entry in reversed(ranked[-each:])]
    return [(kind, name, dice) for kind, (dice, name) in chosen]
