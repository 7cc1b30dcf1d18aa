"""What is done with a source: read, predict, write; by a run on one machine or by each actor of a cluster."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..formats import replacing, write_image
from ..formats.overlay import montage, overlay
from ..types import UserError, one_line
from .card import Card
from .predictor import Predictor
from .routing import Route, modality_number, route_of
from .side_by_side import side_by_side
from .slices import Slices, predict_slices
from .sources import Source, read_slices, read_written, require_equal, suffix_of, voxel_of, write_slices

SHOWN = 25  # slices of a volume in its overlay


class Extras(NamedTuple):
    """What to write beside the masks, and how."""

    probabilities: bool = False
    overlays: bool = False
    tile: bool = False
    dicom_seg: bool = False


class Order(NamedTuple):
    """What is wanted of every source."""

    out: Path
    extras: Extras
    modality: str | None
    kept: frozenset[str]  # names of sources whose files, where all are there, are of this student and what it is told
    unknown: frozenset[str]  # names of sources with a mask of which nothing is known: it may be anyone's
    changed: frozenset[str]  # those of `unknown` whose mask was changed since an earlier run wrote it


class Outcome(NamedTuple):
    """What came of one source."""

    number: int  # of the source
    areas: str = ""  # its lines in areas.csv
    route: Route | None = None  # of a student that routes, where the source was predicted now
    written: bool = False  # now; else by an earlier run
    error: str | None = None  # one line: it could not be read or predicted


Engine: TypeAlias = Callable[[Iterable[tuple[int, Source]], Order], Generator[Outcome, None, None]]  # in any order


class Targets(NamedTuple):
    """The files of one source; None: not asked for."""

    mask: Path
    probabilities: Path | None
    overlay: Path | None


def predict_sources(
    predictor: Predictor, sources: Iterable[tuple[int, Source]], order: Order
) -> Generator[Outcome, None, None]:
    """Read, predict and write numbered sources, as many at once as the predictor has workers.

    Raises:
        UserError: `order.out` cannot be written.
    """
    told = modality_number(predictor, order.modality)
    with side_by_side(partial(_predict, predictor, order, told), sources, predictor.workers) as outcomes:
        yield from outcomes


def _predict(predictor: Predictor, order: Order, told: int | None, numbered: tuple[int, Source]) -> Outcome:
    """One source; where an earlier run wrote all that is wanted, its labels are read again."""
    number, source = numbered
    card, extras = predictor.card, order.extras
    try:
        target = targets_of(order.out, source, extras)
        if _is_done(order, source, target):
            return Outcome(number, _areas(source, read_written(target.mask, source, card), card))
        slices = read_slices(source)
    except UserError as error:
        return Outcome(number, error=str(error))
    try:
        result = predict_slices(predictor, slices, tile=extras.tile, probabilities=extras.probabilities, modality=told)
    except UserError as error:
        return Outcome(number, error=one_line(f"{source.files[0]}: {error}"))
    try:
        if source.name.as_posix() in order.unknown:
            require_equal(target.mask, result.labels, source, card)
    except UserError as error:
        changed = source.name.as_posix() in order.changed
        return Outcome(
            number, error=f"{error} (it was changed since it was predicted, and is kept)" if changed else str(error)
        )
    _write(target, source, slices, result, card)
    route = route_of(predictor, source.name.as_posix(), result.routing, told) if predictor.routes else None
    return Outcome(number, _areas(source, result.labels, card), route, written=True)


def _is_done(order: Order, source: Source, target: Targets) -> bool:
    return source.name.as_posix() in order.kept and all(path is None or path.exists() for path in target)


def targets_of(out: Path, source: Source, extras: Extras) -> Targets:
    """Where the results of a source go.

    Raises:
        UserError: a header that cannot be read, or a name that the tables, which are UTF-8, cannot hold.
    """
    if any("\ud800" <= c <= "\udfff" for c in source.name.as_posix()):  # Python's sign for a byte that is not UTF-8
        raise UserError(f"{source.files[0]}: its name is not valid text; rename it")

    def beside(ending: str) -> Path:
        return out / source.name.with_name(source.name.name + ending)

    return Targets(
        beside(suffix_of(source, dicom_seg=extras.dicom_seg)),
        beside("_prob.npz") if extras.probabilities else None,
        beside("_overlay.png") if extras.overlays else None,
    )


def _write(target: Targets, source: Source, slices: NDArray[np.uint8], predicted: Slices, card: Card) -> None:
    """Each file appears complete or not at all; the mask comes last."""
    labels, probabilities, _ = predicted
    try:
        target.mask.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target.mask.parent} ({error.strerror}); choose another") from error
    if target.probabilities and probabilities is not None:
        with replacing(target.probabilities) as file:
            flat = target.mask.suffix == ".png"
            np.savez_compressed(file, probabilities=probabilities[:, 0] if flat else probabilities)
    if target.overlay:
        write_image(target.overlay, _overlay(slices, labels, card))
    write_slices(target.mask, labels, source, card)


def _overlay(slices: NDArray[np.uint8], labels: NDArray[np.uint8], card: Card) -> NDArray[np.uint8]:
    """The image with its classes in colour; of a volume evenly spread slices, side by side."""
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), SHOWN)).astype(int))
    coloured = slices if slices.ndim == 4 else np.repeat(slices[..., None], 3, axis=3)
    return montage([overlay(coloured[k], labels[k], card.colours) for k in chosen])


def _areas(source: Source, labels: NDArray[np.uint8], card: Card) -> str:
    """One line per class, as in areas.csv: mm2 of an image or mm3 of a volume, and the first of the files."""
    voxel = voxel_of(source)
    foreground = [int(np.count_nonzero(labels == k)) for k in range(1, len(card.classes))]
    pixels = [labels.size - sum(foreground), *foreground]  # numpy's bincount would make 8 bytes of each pixel
    name, file = source.name.as_posix(), os.path.abspath(source.files[0])
    return csv_lines(
        (name, c, n, f"{n / labels.size:.6f}", "" if voxel is None else f"{n * voxel:.6g}", file)
        for c, n in zip(card.classes, pixels, strict=True)
    )


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """As in areas.csv."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
