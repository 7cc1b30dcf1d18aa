"""What a data set's masks are scored for: the labelled rows of a split, and what their values mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..data.cache import truth
from ..data.findings import Named
from ..data.labels import LabelMapping, MaskValues, build_mapping, possible_meanings, scan_values
from ..data.rows import Manifest, Row
from ..data.several import Source, into_classes, per_set
from ..deploy.card import MEANINGS, Card
from ..types import Known, UserError
from .data import run_around, saved_sets
from .terminal import bar, console

Split = Literal["auto", "train", "val", "test", "all"]


def sources_of(
    sets: Sequence[Manifest], card: Card, said: Mapping[str, Named], run: Path | None = None
) -> dict[str, Source]:
    """What the masks of each data set mean in the student's classes; shown on the terminal.

    The masks of `run` (as in `with_saved_splits`) mean what they meant to it, set by set; in other data, values that
    the training had mean what they meant there. All masks of a set are looked at, whatever is scored.

    Raises:
        UserError: Values that nobody can know the meaning of, or that had several meanings in the training.
    """
    known = [LabelMapping.from_json(saved) for saved in card.data.get(MEANINGS, ())]
    saved = _saved_sets(run) if run else []
    sources = {}
    for one in sets:
        try:
            own = _own_meaning(one, card.classes, said[one.name], saved)
            mapping = own or _meaning(one, card.classes, said[one.name], known)
        except UserError as error:
            raise UserError(f"{one.name}: {error}" if len(sets) > 1 else str(error)) from None
        show_meaning("mask values" + (f" of {one.name}" if len(sets) > 1 else ""), mapping)
        sources[one.name] = Source(one.name, one.root, mapping)
    return sources


def meanings(sources: Mapping[str, Source], classes: tuple[str, ...], known: Known | None) -> list[LabelMapping]:
    """What mask values mean in a training's data sets, after those of the student that it started from.

    None at all where that student does not say: in its data the same values may have meant other classes.
    """
    if known and not known.meanings:
        return []
    before = [into_classes(LabelMapping.from_json(saved), classes) for saved in known.meanings] if known else []
    return before + [source.mapping for source in sources.values() if source.mapping]


def show_meaning(title: str, mapping: LabelMapping) -> None:
    """What each value means, on the terminal."""
    console.print(f"{title}:\n  " + mapping.describe().replace("\n", "\n  "), markup=False)


def _meaning(one: Manifest, classes: tuple[str, ...], said: Named, known: Sequence[LabelMapping]) -> LabelMapping:
    """What the masks mean; where that cannot be known, as grey levels say nothing, with the training's threshold."""
    above = {mapping.found.threshold for mapping in known}
    try:
        return _as_said(one, classes, said, known)
    except UserError:
        if said.threshold is not None or len(above) != 1 or None in above:
            raise
        return _as_said(one, classes, replace(said, threshold=above.pop()), known)


def _as_said(one: Manifest, classes: tuple[str, ...], said: Named, known: Sequence[LabelMapping]) -> LabelMapping:
    found = values_in([row.mask for row in one.rows if row.mask], said.threshold, len(classes))
    if said.classes:
        return into_classes(build_mapping(found, said.classes), classes)
    meant = possible_meanings(found, [mapping for mapping in known if mapping.classes == classes])
    if len(meant) > 1:
        shown = " or ".join(", ".join(mapping.classes[index] for index in mapping.indices) for mapping in meant)
        raise UserError(
            f"mask values {found.listed()} meant {shown} in different data sets of the training; name the classes of "
            "these masks, background first, with --classes"
        )
    return meant[0] if meant else build_mapping(found, classes)


def _own_meaning(
    one: Manifest, classes: tuple[str, ...], said: Named, saved: Sequence[tuple[Source, Sequence[Row]]]
) -> LabelMapping | None:
    """What the masks meant to the run whose own they all are; None for other masks, or where an option says else."""
    masks = {(row.image, mask) for row in one.rows if (mask := truth(row))}
    for source, rows in saved:
        mapping = source.mapping
        if mapping is None or said.classes or said.threshold not in (None, mapping.found.threshold):
            continue
        kept = {(_below(row.image, source.root), _below(mask, source.root)) for row in rows if (mask := truth(row))}
        here = {(_below(image, one.root), _below(mask, one.root)) for image, mask in masks}
        if source.root.resolve() == one.root.resolve() and here and here <= kept:
            return into_classes(mapping, classes)
    return None


def _saved_sets(run: Path) -> list[tuple[Source, list[Row]]]:
    """The data sets of the run that a path is or lies in, with their rows; none where there is no run."""
    around = run_around(run)
    sources, parts = saved_sets(around) if around else ({}, [])
    return list(zip(sources.values(), parts, strict=True))


def with_saved_splits(run: Path, sets: Sequence[Manifest], modality: str | None = None) -> list[Manifest]:
    """The data sets with the splits that a run drew, where they are the run's own: else its training images are scored.

    So are the modalities, which the run may have been told, but for those that the option `modality` names now.

    `run` may also be what lies in a run: its student, another of its students, an exported file. Nothing changes for
    other data, or where there is no run.
    """
    saved = _saved_sets(run)
    told = per_set(modality, [one.name for one in sets], "--modality")

    def drawn(one: Manifest) -> Manifest:
        known: dict[Path, Row] = {}
        for source, rows in sorted(
            saved, key=lambda entry: entry[0].name == one.name
        ):  # its namesake has the last word
            if source.root.resolve() == one.root.resolve():  # as several CSV files in one folder
                known |= {_below(row.image, source.root): row for row in rows}
        return replace(one, rows=tuple(as_kept(row, known.get(_below(row.image, one.root), row)) for row in one.rows))

    def as_kept(row: Row, kept: Row) -> Row:
        named = row.modality if told.get(row.dataset) else kept.modality or row.modality
        return replace(row, split=kept.split, modality=named)

    return [drawn(one) for one in sets]


def _below(file: Path, root: Path) -> Path:
    return file.relative_to(root) if file.is_relative_to(root) else file


def labelled_rows(rows: Sequence[Row], split: Split, data: Path) -> list[Row]:
    """The labelled rows of a split."""
    labelled = [row for row in rows if row.mask]
    wanted = resolved(labelled, split)
    chosen = [row for row in labelled if wanted in ("all", row.split)]
    if not chosen:
        have = ", ".join(sorted({row.split or "none" for row in labelled})) or "no masks at all"
        raise UserError(f"{data}: no labelled image in split {wanted!r} (there are: {have}); choose another --split")
    return chosen


def resolved(rows: Sequence[Row], split: Split) -> str:
    """What "auto" means for these rows."""
    has_test = any(row.split == "test" and row.mask for row in rows)
    return split if split != "auto" else "test" if has_test else "all"


def values_in(masks: list[Path], threshold: int | None, named: int = 0) -> MaskValues:
    """What values these masks hold, of which `named` classes may each be one."""
    with bar("reading masks") as progress:
        return scan_values(masks, None, progress, threshold, named)
