"""What a data set's masks are scored for: the labelled rows of a split, and what their values mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..data.findings import Named
from ..data.labels import LabelMapping, MaskValues, as_known, build_mapping, scan_values
from ..data.rows import Manifest, Row
from ..data.several import Source, into_classes
from ..deploy.card import MEANINGS, Card
from ..types import Known, UserError
from .data import run_around, saved_sets
from .terminal import bar, console

Split = Literal["auto", "train", "val", "test", "all"]


def sources_of(sets: Sequence[Manifest], card: Card, said: Mapping[str, Named]) -> dict[str, Source]:
    """What the masks of each data set mean in the student's classes; shown on the terminal.

    Values that the training had mean what they meant there. All masks of a set are looked at, whatever is scored.
    """
    known = [LabelMapping.from_json(saved) for saved in card.data.get(MEANINGS, ())]
    sources = {}
    for one in sets:
        try:
            mapping = _meaning(one, card.classes, said[one.name], known)
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
    found = values_in([row.mask for row in one.rows if row.mask], said.threshold)
    if said.classes:
        return into_classes(build_mapping(found, said.classes), classes)
    return as_known(found, [mapping for mapping in known if mapping.classes == classes]) or build_mapping(
        found, classes
    )


def with_saved_splits(run: Path, sets: Sequence[Manifest]) -> list[Manifest]:
    """The data sets with the splits that a run drew, where they are the run's own: else its training images are scored.

    `run` may also be what lies in a run: its student, another of its students, an exported file. Nothing changes for
    other data, or where there is no run.
    """
    around = run_around(run)
    if around is None:
        return list(sets)
    sources, parts = saved_sets(around)
    drawn = {
        source.root.resolve(): {_below(row.image, source.root): row.split for row in part}
        for source, part in zip(sources.values(), parts, strict=True)
    }

    def split(row: Row, one: Manifest) -> str:
        return drawn.get(one.root.resolve(), {}).get(_below(row.image, one.root), row.split)

    return [replace(one, rows=tuple(replace(row, split=split(row, one)) for row in one.rows)) for one in sets]


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


def values_in(masks: list[Path], threshold: int | None) -> MaskValues:
    """What values these masks hold."""
    with bar("reading masks") as progress:
        return scan_values(masks, None, progress, threshold)
