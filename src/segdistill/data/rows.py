"""The rows of a data set: one image each, with what is known of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats import split_address


@dataclass(frozen=True)
class Row:
    """One image and what is known of it."""

    image: Path
    mask: Path | None
    split: str = ""  # "train", "val", "test"; "" where not assigned yet
    patient: str = ""  # "" where unknown
    modality: str = ""
    volume: str = ""
    slice: int | None = None  # position in the volume
    spacing: tuple[float, ...] | None = None  # mm, (rows, columns) or (slices, rows, columns)
    hidden: Path | None = None  # the mask where the label budget took it away: for reports, never for training
    dataset: str = ""  # name of its data set: patients and volumes of one name in two sets are different ones


@dataclass(frozen=True)
class Manifest:
    """All rows of a data set; `root` is the folder that relative paths start from."""

    name: str
    root: Path
    rows: tuple[Row, ...]


def group_of(row: Row) -> tuple[str, str]:
    """What must stay in one split, as (kind, name): the patient, else the volume, else the file, of all its slices."""
    return ("patient", row.patient) if row.patient else whole_of(row)


def whole_of(row: Row) -> tuple[str, str]:
    """What a row is a part of, as (kind, name): its volume, else its file, of all its slices."""
    return ("volume", row.volume) if row.volume else ("file", str(split_address(row.image)[0]))


def by_file(paths: Sequence[Path]) -> list[int]:
    """Positions of the paths, the slices of a file one after the other, files in the order in which they come.

    Few decoded volumes are kept: in a random order each slice would decode its own.
    """
    first: dict[Path, int] = {}
    places = [first.setdefault(split_address(path)[0], i) for i, path in enumerate(paths)]
    return sorted(range(len(places)), key=places.__getitem__)


def with_patients(rows: Sequence[Row]) -> list[Row]:
    """The rows, those of an unknown patient with the one that other slices of their volume or file name."""
    named: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        named[whole_of(row)].add(row.patient)
    patients = {whole: next(iter(names - {""})) for whole, names in named.items() if len(names - {""}) == 1}
    return [row if row.patient else replace(row, patient=patients.get(whole_of(row), "")) for row in rows]
