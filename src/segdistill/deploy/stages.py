"""What is done with each source: read, predict, write; by a run on one machine or by each actor of a cluster."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..formats import replacing, write_image
from ..formats.overlay import montage, overlay
from ..types import UserError
from .card import Card
from .pipeline import ahead
from .predictor import Predictor
from .routing import Route, modality_number, route_of
from .slices import Slices, predict_slices
from .sources import Source, read_slices, read_written, spacing_of, suffix_of, write_slices

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
    overwrite: bool
    routed: frozenset[str]  # names of sources whose modality is in routing.csv


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
    """Predict numbered sources and write their files; the next one is read and the last one written meanwhile.

    Raises:
        UserError: `order.out` cannot be written.
    """
    stages = _Stages(predictor, order, modality_number(predictor, order.modality))
    with ahead(stages.load, sources) as loaded, ahead(stages.finish, map(stages.predict, loaded)) as ended:
        yield from ended


class _Job(NamedTuple):
    """A source on its way from reading to writing."""

    number: int
    source: Source
    target: Targets
    slices: NDArray[np.uint8]  # (N, H, W) or (N, H, W, 3)
    result: Slices | None = None


@dataclass(frozen=True)
class _Stages:
    """Three steps; a source that needs no more of them passes through as its outcome."""

    predictor: Predictor
    order: Order
    told: int | None  # the modality

    def load(self, numbered: tuple[int, Source]) -> _Job | Outcome:
        """Read the source, or only its labels where an earlier run wrote all that is wanted."""
        number, source = numbered
        try:
            target = targets_of(self.order.out, source, self.order.extras)
            if self._is_done(source, target):
                labels = read_written(target.mask, self.predictor.card)
                return Outcome(number, _areas(source, labels, self.predictor.card))
            return _Job(number, source, target, read_slices(source))
        except UserError as error:
            return Outcome(number, error=str(error))

    def _is_done(self, source: Source, target: Targets) -> bool:
        known = not self.predictor.routes or source.name.as_posix() in self.order.routed
        return known and not self.order.overwrite and all(path is None or path.exists() for path in target)

    def predict(self, job: _Job | Outcome) -> _Job | Outcome:
        """In the caller's thread: the network may use all others."""
        if isinstance(job, Outcome):
            return job
        extras = self.order.extras
        try:
            result = predict_slices(
                self.predictor,
                job.slices,
                tile=extras.tile,
                probabilities=extras.probabilities,
                modality=self.told,
            )
        except UserError as error:
            return Outcome(job.number, error=f"{job.source.files[0]}: {error}")
        return job._replace(result=result)

    def finish(self, job: _Job | Outcome) -> Outcome:
        """Write what was predicted, and count its pixels."""
        if isinstance(job, Outcome):
            return job
        assert job.result is not None
        _write(job.target, job.source, job.slices, job.result, self.predictor.card)
        areas = _areas(job.source, job.result.labels, self.predictor.card)
        route = None
        if self.predictor.routes:
            route = route_of(self.predictor, job.source.name.as_posix(), job.result.routing, self.told)
        return Outcome(job.number, areas, route, written=True)


def targets_of(out: Path, source: Source, extras: Extras) -> Targets:
    """Where the results of a source go.

    Raises:
        UserError: a header that cannot be read.
    """

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
    """One line per class: name (without suffix), class, pixels, fraction, mm2 of an image or mm3 of a volume."""
    spacing = spacing_of(source)
    voxel = math.prod(spacing) if spacing and (len(spacing) == 3 or len(labels) == 1) else None
    foreground = [int(np.count_nonzero(labels == k)) for k in range(1, len(card.classes))]
    pixels = [labels.size - sum(foreground), *foreground]  # numpy's bincount would make 8 bytes of each pixel
    name = source.name.as_posix()
    return csv_lines(
        (name, c, n, f"{n / labels.size:.6f}", "" if voxel is None else f"{n * voxel:.6g}")
        for c, n in zip(card.classes, pixels, strict=True)
    )


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """As in areas.csv."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
