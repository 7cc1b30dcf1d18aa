"""What a data set's masks are scored for: the labelled rows of a split, and what their values mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..data.findings import Named
from ..data.labels import LabelMapping, build_mapping, scan_values
from ..data.rows import Manifest, Row
from ..data.several import Source, into_classes
from ..types import UserError
from .terminal import bar

Split = Literal["auto", "train", "val", "test", "all"]


def sources_of(
    sets: Sequence[Manifest], split: Split, classes: tuple[str, ...], said: dict[str, Named]
) -> dict[str, Source]:
    """What the scored masks of each data set mean in the student's classes."""
    sources = {}
    for one in sets:
        masks = [row.mask for row in labelled_rows(one.rows, split, one.root) if row.mask]
        names, threshold = said[one.name].classes, said[one.name].threshold
        try:
            mapping = mapping_of(masks, names or classes, threshold)
            sources[one.name] = Source(one.name, one.root, into_classes(mapping, classes) if names else mapping)
        except UserError as error:
            raise UserError(f"{one.name}: {error}" if len(sets) > 1 else str(error)) from None
    return sources


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


def mapping_of(masks: list[Path], classes: Sequence[str] | None, threshold: int | None) -> LabelMapping:
    """Which value is which class, from all masks."""
    with bar("reading masks") as progress:
        return build_mapping(scan_values(masks, None, progress, threshold), classes)
