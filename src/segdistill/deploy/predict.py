"""Predict files and folders: masks, optional probabilities and overlays, a table of areas. Resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..formats import replacing
from ..types import UserError
from .predicted import Ledger
from .predictor import Predictor
from .routing import ROUTING, UNSURE, Route, modality_number, note_route, read_routes, write_routes
from .sources import Source, find_sources
from .stages import Engine, Extras, Order, csv_lines, predict_sources, targets_of

AREAS = "areas.csv"
COLUMNS = ("image", "class", "pixels", "fraction", "mm2_or_mm3")


class PredictSummary(NamedTuple):
    """What happened to the images and volumes."""

    written: int
    skipped: int  # predicted by an earlier run
    failed: list[tuple[Path, str]]  # image, one line
    unsure: list[Route]  # the student is not sure of their modality, those of an earlier run included


def predict_files(
    predictor: Predictor, inputs: Sequence[str | Path], out: Path, extras: Extras | None = None, **how: Any
) -> PredictSummary:
    """`predict_found` of files, folders and patterns; see `find_images`, whose UserErrors it raises too."""
    return predict_found(predictor, find_sources(inputs, out), out, extras, **how)


def predict_found(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    extras: Extras | None = None,
    *,
    modality: str | None = None,
    overwrite: bool = False,
    engine: Engine | None = None,
    on_progress: Callable[[int, int, Path], None] | None = None,
) -> PredictSummary:
    """Predict each image or volume and write its files into `out`; `areas.csv` there covers all, those skipped too.

    Of a student that tells modalities apart, `routing.csv` says which one each image or volume was predicted as.

    Args:
        predictor: Of `open_predictor`.
        sources: Of `find_sources`, with the same `out`.
        out: Folder, created where missing. Masks hold class indices at the size of their source: `<name>.png` of an
            image, `<name>.nii.gz` of a NIfTI volume or a DICOM series or multi-frame file, `<name>.h5` of HDF5.
        extras: probabilities: also `<name>_prob.npz` with "probabilities", float16 (C, H, W) or (C, N, H, W).
            overlays: also `<name>_overlay.png`, of a volume up to 25 of its slices. tile: see `predict_tiled`.
            dicom_seg: for DICOM, `<name>.dcm` (DICOM-SEG) instead.
        modality: Of all the images; None: the student finds it, once for a volume or a tiled image.
        overwrite: Predict again what has all its files already; without it such a source is skipped, unless its files,
            the student, `tile` or the modality told are others than predicted.jsonl and routing.csv say of them. A mask
            of which they say nothing, or that was changed since, is never replaced by another.
        engine: What does the work, in place of this process: see `ray_engine`. Results are the same.
        on_progress: Called after each source with (number done, number of all, its first file).

    Returns:
        The counts. A source that cannot be read is in `failed`, and the others are predicted.

    Raises:
        UserError: a result would replace a source, no such modality, or `out` cannot be written.
    """
    extras = extras or Extras()
    modality_number(predictor, modality)
    _require_sources_kept(sources, out, extras)
    routes = _valid_routes(out / ROUTING, modality, overwrite) if predictor.routes else {}
    ledger = Ledger(out, predictor.identity, extras, sources, overwrite=overwrite)
    kept = ledger.kept & routes.keys() if predictor.routes else ledger.kept
    order = Order(out, extras, modality, kept, ledger.unknown, ledger.changed)
    rows, counts, failed = [""] * len(sources), Counter[bool](), {}
    run = engine or partial(predict_sources, predictor)
    with closing(run(ledger.begun(sources), order)) as outcomes:
        for done, outcome in enumerate(outcomes, start=1):
            source = sources[outcome.number]
            if outcome.error is not None:
                failed[outcome.number] = (source.files[0], outcome.error)
            else:
                counts[outcome.written] += 1
                rows[outcome.number] = outcome.areas
            if outcome.route:
                routes[outcome.route.image] = outcome.route
                note_route(out / ROUTING, outcome.route)
            if outcome.written:
                ledger.done(source)
            if on_progress:
                on_progress(done, len(sources), source.files[0])
    _write_areas(out / AREAS, rows)
    used = [routes[name] for source in sources if (name := source.name.as_posix()) in routes]
    if predictor.routes:
        write_routes(out / ROUTING, used)
    unsure = [route for route in used if route.decided_by == UNSURE]
    return PredictSummary(counts[True], counts[False], [failed[number] for number in sorted(failed)], unsure)


def _valid_routes(path: Path, modality: str | None, overwrite: bool) -> dict[str, Route]:
    """What earlier runs noted and this one keeps; the rest leaves the file, so that a stopped run does it again."""
    noted = read_routes(path)
    kept = {name: route for name, route in noted.items() if not overwrite and modality in (None, route.modality)}
    if len(kept) < len(noted):
        write_routes(path, kept.values())
    return kept


def _require_sources_kept(sources: Sequence[Source], out: Path, extras: Extras) -> None:
    """No result may take the place of an image, also where case does not count."""
    images = {str(file.resolve()).casefold() for source in sources for file in source.files}
    for source in sources:
        try:
            targets = targets_of(out, source, extras)
        except UserError:
            continue  # its header cannot be read: it fails in its turn
        for path in (path for path in targets if path is not None):
            if str(path.resolve()).casefold() in images:
                raise UserError(f"the result {path} would replace the image of that name; choose another output folder")


def _write_areas(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # there is none if every image failed
    with replacing(path) as file:
        file.write(csv_lines([COLUMNS]).encode())
        file.writelines(row.encode() for row in rows)
