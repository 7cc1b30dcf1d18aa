"""Volumes: files of many slices become rows, rows become volumes again, and a slice finds its neighbours.

A slice of a file that holds several is the path FILE#k (formats/files.py), so that a row is one 2-D image everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..formats import (
    DICOM_SUFFIXES,
    Layout,
    check_pair,
    find_series,
    is_volume,
    layout,
    read_image,
    split_address,
    stem_of,
)
from ..types import UserError
from .rows import Row

Spacing = tuple[float, ...]


def expand(rows: Sequence[Row], root: Path) -> list[Row]:
    """Rows whose image is a file of slices become one row per slice; spacing comes from the file where it has one.

    DICOM files of one series become slices of a volume, in the order of their positions.

    Raises:
        UserError: an unreadable header, or a mask that does not fit its image.
    """
    compared: set[tuple[Path, Path]] = set()
    for row in rows:
        _compare(row, compared)
    header = cache(layout)  # a CSV file names a file in as many rows as it has slices
    return _join_series([one for row in rows for one in _slices(row, root, header)], root)


def _compare(row: Row, compared: set[tuple[Path, Path]]) -> None:
    """A file of slices with that of its mask, by their headers: whole files, or two that are addressed, once."""
    if row.mask is None:
        return
    (file, address), (mask, inside) = split_address(row.image), split_address(row.mask)
    alike = address is None or inside is not None
    if is_volume(file) and alike and mask != file and (file, mask) not in compared:
        check_pair(row.image, row.mask)
        compared.add((file, mask))


def volumes(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each volume in the order of its slices; a row without a volume stands alone.

    Raises:
        UserError: slices given twice, or missing between others: distances across the gap would be wrong; slices of
            several patients.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        one = f"volume {row.volume}" if row.volume else f"image {row.image}"
        groups.setdefault((row.dataset, one), []).append(row)
    return [_in_order(group) for group in groups.values()]


def voxel_spacing(volume: Sequence[Row]) -> Spacing | None:
    """Millimetres per axis of a volume's (slices, rows, columns), or of an image's (rows, columns); None: unknown."""
    first = volume[0]
    if not first.volume:
        return first.spacing[-2:] if first.spacing else None
    if first.spacing is None or len(first.spacing) < 3:
        return None
    numbers = [row.slice for row in volume[:2] if row.slice is not None]
    step = numbers[1] - numbers[0] if len(numbers) == 2 else 1
    return (first.spacing[0] * step, *first.spacing[1:])


def with_neighbours(rows: Sequence[Row], among: Sequence[Row] = ()) -> dict[Path, tuple[Path, Path, Path]]:
    """For each image the slices below, at and above it; the outermost slices stand in for what is beyond them.

    Args:
        rows: Slices that are asked for.
        among: All rows of their data sets: where only some slices have masks, the others are neighbours all the same.

    Raises:
        UserError: a row without a volume, or slices that are missing or given twice.
    """
    for row in rows:
        if not row.volume:
            raise UserError(f"{row.image}: belongs to no volume, so it has no neighbours; use --neighbours 0")
    found = {}
    asked = {(row.dataset, row.volume) for row in rows}
    for volume in volumes([row for row in among or rows if (row.dataset, row.volume) in asked]):
        paths = [row.image for row in volume]
        for here, below, above in zip(paths, [paths[0], *paths], [*paths[1:], paths[-1]], strict=False):
            found[here] = (below, here, above)
    return found


def read_neighbours(paths: tuple[Path, Path, Path]) -> NDArray[np.uint8]:
    """The three slices as the channels of one image, (H, W, 3).

    Raises:
        UserError: a slice in colour, or of another size than its neighbours.
    """
    slices = [_grey(path) for path in paths]
    if len({slice.shape for slice in slices}) > 1:
        shapes = ", ".join(f"{slice.shape[1]}x{slice.shape[0]}" for slice in slices)
        raise UserError(f"{paths[1]}: it and its neighbours have {shapes} pixels; slices of a volume have one size")
    return np.stack(slices, axis=2)


def _slices(row: Row, root: Path, header: Callable[[Path], Layout]) -> Iterator[Row]:
    file, address = split_address(row.image)
    if not is_volume(file):
        yield row
        return
    found = header(file)
    row = replace(row, spacing=row.spacing or found.spacing)
    if address is not None or found.slices == 1:
        yield row
        return
    inside = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    name = row.volume or inside.with_name(stem_of(file)).as_posix()
    for k in range(found.slices):
        mask = row.mask and row.mask.with_name(f"{row.mask.name}#{k}")
        yield replace(row, image=file.with_name(f"{file.name}#{k}"), mask=mask, volume=name, slice=k)


def _join_series(rows: list[Row], root: Path) -> list[Row]:
    """DICOM files that form a series get its volume, slice and spacing."""
    alone = {row.image: number for number, row in enumerate(rows) if _may_be_slice(row)}
    if not alone:
        return rows
    for series in find_series(list(alone))[0]:
        folder = series.files[0].parent
        name = (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()
        for k, file in enumerate(series.files):
            number = alone[file]
            volume = f"{name} ({series.uid_hash})"
            rows[number] = replace(rows[number], volume=volume, slice=k, spacing=series.spacing)
    return rows


def _may_be_slice(row: Row) -> bool:
    return not row.volume and row.image.suffix.lower() in DICOM_SUFFIXES


def _in_order(group: list[Row]) -> list[Row]:
    patients = sorted({row.patient for row in group})
    if group[0].volume and len(patients) > 1:
        raise UserError(
            f"volume {group[0].volume}: its slices are of {len(patients)} patients ({', '.join(patients[:3])}); "
            "give each patient's volumes names of their own, as p1_ED"
        )
    if any(row.slice is None for row in group):
        return group
    group = sorted(group, key=lambda row: row.slice or 0)
    steps = {(after.slice or 0) - (before.slice or 0) for before, after in pairwise(group)}
    if len(steps) > 1 or 0 in steps:
        numbers = ", ".join(str(row.slice) for row in group[:12])
        raise UserError(
            f"volume {group[0].volume}: its slices are {numbers}{', ...' if len(group) > 12 else ''}, but must follow "
            "one another; add the missing ones (with empty masks where nothing is to be seen), or leave the column "
            "volume empty to take each slice as an image of its own"
        )
    return group


def _grey(path: Path) -> NDArray[np.uint8]:
    image = read_image(path)
    if not (np.array_equal(image[:, :, 0], image[:, :, 1]) and np.array_equal(image[:, :, 0], image[:, :, 2])):
        raise UserError(f"{path}: is in colour; neighbouring slices become channels only where they are grey")
    return image[:, :, 0]
