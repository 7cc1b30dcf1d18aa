"""The rows of a data set: one image each, with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
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
    for kind in ("patient", "volume"):
        if name := getattr(row, kind):
            return kind, name
    return "file", str(split_address(row.image)[0])
