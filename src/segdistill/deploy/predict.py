"""Predict files and folders: masks, optional probabilities and overlays, a table of areas. Resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..types import UserError
from .predicted import Ledger
from .predictor import Predictor
from .routing import ROUTING, UNSURE, Route, modality_number, note_route, read_routes, route_line, write_routes
from .sources import Source, find_sources
from .stages import Engine, Extras, Order, predict_sources, targets_of
from .tables import Lines, lines_of, write_tables


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

    The table keeps the lines of masks that earlier calls with this student left in `out`, as long as they are as they
    were. Of a student that tells modalities apart, `routing.csv` says which one each image or volume was predicted as.

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
    names = [source.name.as_posix() for source in sources]
    routes = _valid_routes(out / ROUTING, {*names}, modality, overwrite) if predictor.routes else {}
    ledger = Ledger(out, predictor.identity, extras, sources, overwrite=overwrite)
    kept = ledger.kept & routes.keys() if predictor.routes else ledger.kept
    order = Order(out, extras, modality, kept, ledger.unknown, ledger.changed)
    lines, counts, failed = dict[int, Lines](), Counter[bool](), {}
    run = engine or partial(predict_sources, predictor)
    with closing(run(ledger.begun(sources), order)) as outcomes:
        for done, outcome in enumerate(outcomes, start=1):
            source = sources[outcome.number]
            if outcome.route:
                routes[outcome.route.image] = outcome.route
                note_route(out / ROUTING, outcome.route)
            if outcome.error is not None:
                failed[outcome.number] = (source.files[0], outcome.error)
            else:
                counts[outcome.written] += 1
                found = lines_of(source, outcome.areas, route_line(routes.get(names[outcome.number])))
                ledger.done(source, found.areas, found.route, written=outcome.written)
                lines[outcome.number] = found
            if on_progress:
                on_progress(done, len(sources), source.files[0])
    write_tables(out, ledger, [lines[number] for number in sorted(lines)], routes=predictor.routes)
    unsure = [routes[name] for name in names if name in routes and routes[name].decided_by == UNSURE]
    return PredictSummary(counts[True], counts[False], [failed[number] for number in sorted(failed)], unsure)


def _valid_routes(path: Path, names: set[str], modality: str | None, overwrite: bool) -> dict[str, Route]:
    """What earlier runs noted and this one keeps; the rest leaves the file, so that a stopped run does it again.

    What other images were taken for is none of this run's business.
    """
    noted = read_routes(path)
    valid = {name for name, route in noted.items() if not overwrite and modality in (None, route.modality)}
    kept = {name: route for name, route in noted.items() if name in valid or name not in names}
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
