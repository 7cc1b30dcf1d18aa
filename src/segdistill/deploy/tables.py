"""areas.csv and routing.csv of a folder: the lines of a run, and of what earlier runs of its student left there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..formats import replacing
from .predicted import Ledger, Made
from .routing import COLUMNS as ROUTING_COLUMNS
from .routing import ROUTING
from .sources import Source
from .stages import csv_lines

AREAS = "areas.csv"
COLUMNS = ("image", "class", "pixels", "fraction", "mm2_or_mm3", "source")


class Lines(NamedTuple):
    """What the tables say of one mask."""

    place: str  # sorts masks as `find_images` sorts the images of a folder
    areas: str
    route: str  # "" of a student that treats all modalities alike


def lines_of(source: Source, areas: str, route: str) -> Lines:
    """Of a source of this run; `areas` of its Outcome."""
    return Lines(_place(source.name, str(source.files[0])), areas, route)


def write_tables(out: Path, ledger: Ledger, own: Sequence[Lines], *, routes: bool) -> None:
    """Write both; in the order of this run's sources, or by name where there are masks of others."""

    def write(others: list[Made]) -> None:
        lines = [*own, *(Lines(_place(PurePosixPath(one.mask), one.source), one.areas, one.route) for one in others)]
        if others:
            lines.sort(key=lambda one: one.place)
        _write(out / AREAS, COLUMNS, (one.areas for one in lines))
        if routes:
            _write(out / ROUTING, ROUTING_COLUMNS, (one.route for one in lines))

    ledger.write_tables(write)


def _place(name: Path | PurePosixPath, file: str) -> str:
    """Path in the folder that was searched, where it was one."""
    return (name.parent / os.path.basename(file)).as_posix()


def _write(path: Path, columns: Sequence[str], lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # there is none if every image failed
    with replacing(path) as file:
        file.write(csv_lines([columns]).encode())
        file.writelines(line.encode(errors="backslashreplace") for line in lines)  # a folder's name may be no UTF-8
