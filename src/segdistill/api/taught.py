"""What a teacher that is a run has been told of the images that judge its student: it may pass that on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.rows import Row
from ..types import UserError
from .data import run_around, saved_sets

JUDGES = {"test": "test", "val": "validation"}


def refuse_leaks(config: Any, rows: Sequence[Row]) -> None:
    """UserError where a teacher, or the student that a run starts from, has trained on test or validation images."""
    for path in _named(config):
        told = _told(path, rows)
        leaks = [f"{told[split]} {JUDGES[split]} images" for split in JUDGES if told[split]]
        if leaks:
            raise UserError(
                f"{path} was trained with the masks of {' and '.join(leaks)} of this run; scores would be too good: "
                "give one of the same splits (--split_seed), or pass --allow-leakage true"
            )


def told_caveats(config: Any, rows: Sequence[Row]) -> Iterator[str]:
    """What a reader of the scores must know of who taught: which masks it had that the student has not."""
    for path in _named(config):
        told = _told(path, rows)
        for split, name in JUDGES.items():
            if told[split]:
                yield f"{path} was trained with the masks of {told[split]} {name} images: scores are too good"
        if told["hidden"]:
            yield (
                f"{path} was trained with {told['hidden']} masks that are hidden from this student: it has more labels "
                "behind it than its own"
            )


def _named(config: Any) -> list[Path]:
    """The students that a method's settings name as teacher or start; SAM's weights have seen no image of ours."""
    given = [Path(getattr(config, name, None) or "") for name in ("teacher", "init")]
    return [path for path in given if path.name and path.exists()]


def _told(path: Path, rows: Sequence[Row]) -> dict[str, int]:
    """Images by split, and with hidden masks, with whose masks the run around this path was trained."""
    run = run_around(path)
    parts = saved_sets(run)[1] if run else []
    trained = {row.image.resolve() for part in parts for row in part if row.split == "train" and row.mask}
    met = [row for row in rows if row.image.resolve() in trained] if trained else []
    counts = {split: sum(row.split == split and row.mask is not None for row in met) for split in JUDGES}
    return counts | {"hidden": sum(row.split == "train" and row.hidden is not None for row in met)}
