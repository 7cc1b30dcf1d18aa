"""Which modality each image was taken for: told, or found by the student's classifier, and how sure that is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import replacing
from ..types import UserError
from .predictor import Predictor

ROUTING = "routing.csv"
COLUMNS = ("image", "modality", "confidence", "decided_by")
SURE = 0.8  # probability of a modality below which the classifier is said to be unsure
TOLD, FOUND, UNSURE = "told", "classifier", "classifier, unsure"


class Route(NamedTuple):
    """The modality whose controllers saw an image or volume."""

    image: str
    modality: str
    confidence: float | None  # the classifier's; None where the modality was told

    @property
    def decided_by(self) -> str:
        """TOLD, FOUND or UNSURE."""
        return TOLD if self.confidence is None else FOUND if self.confidence >= SURE else UNSURE


def modality_number(predictor: Predictor, name: str | None) -> int | None:
    """The place of a modality in the student; None for None. UserError for one that the student cannot use."""
    names = predictor.card.modalities
    if name is None:
        return None
    if name not in names:
        known = ", ".join(filter(None, names))
        if not known:
            raise UserError(f"--modality {name}: this student has no modalities; leave it out")
        raise UserError(f"--modality {name}: the student knows {known}; choose one of these, or leave it out")
    if len(names) > 1 and not predictor.routes:
        raise UserError(f"--modality {name}: this student treats all modalities alike; leave it out")
    return names.index(name)


def route_of(predictor: Predictor, image: str, routing: NDArray[np.float32] | None, told: int | None) -> Route:
    """From what was told, else the probabilities (M,) of the modalities."""
    if told is not None or routing is None:
        return Route(image, predictor.card.modalities[told or 0], None)
    number = int(routing.argmax())
    return Route(image, predictor.card.modalities[number], round(float(routing[number]), 4))


def read_routes(path: Path) -> dict[str, Route]:
    """What earlier runs noted, by image; an incomplete line of a run that was killed is left out."""
    if not path.exists():
        return {}
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["decided_by"] in (TOLD, FOUND, UNSURE):
                confidence = float(line["confidence"]) if line["decided_by"] != TOLD else None
                found[line["image"]] = Route(line["image"], line["modality"], confidence)
    return found


def note_route(path: Path, route: Route) -> None:
    """Append one, so that a run that is stopped leaves what it decided."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_lines([route], header=new))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another folder") from error


def route_line(route: Route | None) -> str:
    """As in the table; "" for None."""
    return _lines([route] if route else [], header=False)


def write_routes(path: Path, routes: Iterable[Route]) -> None:
    """The whole table at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(_lines(routes, header=True).encode())


def _lines(routes: Iterable[Route], header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    for one in routes:
        confidence = "" if one.confidence is None else f"{one.confidence:.4f}"
        writer.writerow((one.image, one.modality, confidence, one.decided_by))
    return text.getvalue()
