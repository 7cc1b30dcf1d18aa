"""Who trains, who chooses, who is scored: splits by patient, the label budget, and both as a file.

Every draw orders its candidates by a hash of (seed, purpose, position) and takes a prefix. So it depends on the seed
and the order of the rows alone, not on a library's generator or on where the data lie, and a smaller draw is always
part of a larger one with the same seed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..formats.images import replacing
from ..types import UserError
from .manifest import COLUMNS, read_rows
from .rows import Manifest, Row, group_of

T = TypeVar("T")
_SAVED_COLUMNS = (*COLUMNS, "hidden")
_BUDGET = re.compile(r"(?P<percent>\d{1,3}(?:\.\d{1,6})?)\s*%|(?P<count>\d{1,9})\s*(?P<patients>patients?)?", re.ASCII)


def assign_splits(manifest: Manifest, *, val: float, test: float, seed: int) -> tuple[Row, ...]:
    """The manifest's rows, each with its split: train, val or test.

    Splits that the manifest brings win: rows without one then join train (logged), a missing test split stays missing,
    a missing val split is drawn from train. Otherwise both are drawn. `val` and `test` are a fraction (below 1) or a
    number (1 or more) of the labelled images drawn from. Draws keep patients whole (where these are unknown volumes,
    then files) and come as near to the number as that allows. Unlabelled rows train, except that those of a drawn
    patient follow: they serve no score, but must not be trained on either.

    Raises:
        UserError: a bad fraction, or too few patients to draw from.
    """
    rows = list(manifest.rows)
    given = {row.split for row in rows} - {""}
    if given:
        without = sum(not row.split for row in rows)
        if without:
            logging.getLogger(__name__).warning("%d rows without a split join train", without)
        rows = [row if row.split else replace(row, split="train") for row in rows]
    wanted = {"test": 0 if given else test, "val": 0 if "val" in given else val}
    pool = [i for i, row in enumerate(rows) if row.split in ("", "train")]
    drawn = _draw_groups([rows[i] for i in pool], wanted, seed)
    for i, split in zip(pool, drawn, strict=True):
        rows[i] = replace(rows[i], split=split)
    return tuple(rows)


def apply_budget(rows: Sequence[Row], labelled: str | None, seed: int) -> tuple[Row, ...]:
    """Hide the masks of all but some labelled training rows: "10%", "60" (images) or "7patients"; None keeps all.

    Each seed draws its own subset; for one seed, smaller budgets of a kind are contained in larger ones. The mask of
    a row that loses it moves to `hidden`. Other splits are left alone.

    Raises:
        UserError: not such an amount, nothing, more than there is, or unknown patients.
    """
    if labelled is None:
        return tuple(rows)
    match = _BUDGET.fullmatch(labelled.strip())
    if match is None:
        raise UserError(f"labelled {labelled!r}: give a share, a number of images or of patients: 10%, 60, 7patients")
    candidates = [i for i, row in enumerate(rows) if row.split == "train" and row.mask is not None]
    if match["patients"]:
        if not all(rows[i].patient for i in candidates):
            raise UserError(f"labelled {labelled!r}: some training images have no patient; give images, as 60 or 10%")
        patients = list(dict.fromkeys(rows[i].patient for i in candidates))
        chosen = set(_prefix(patients, int(match["count"]), labelled, "labelled training patients", seed))
        kept = {i for i in candidates if rows[i].patient in chosen}
    else:
        count = int(match["count"]) if match["count"] else _share(float(match["percent"]), len(candidates))
        kept = set(_prefix(candidates, count, labelled, "labelled training images", seed))
    hide = set(candidates) - kept
    return tuple(replace(row, mask=None, hidden=row.mask) if i in hide else row for i, row in enumerate(rows))


def save_splits(path: Path, rows: Iterable[Row], root: Path) -> None:
    """Write rows as CSV (a manifest with the column `hidden`), whole or not at all; paths inside `root` relative to it.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")  # all: a leading space must survive
    writer.writerow(_SAVED_COLUMNS)
    for row in rows:
        spacing = "x".join(map(repr, row.spacing)) if row.spacing else ""
        position = "" if row.slice is None else str(row.slice)
        image, mask, hidden = (_relative(file, root) for file in (row.image, row.mask, row.hidden))
        writer.writerow((image, mask, row.split, row.patient, row.modality, row.volume, position, spacing, hidden))
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def load_splits(path: Path, root: Path) -> tuple[Row, ...]:
    """The rows that `save_splits` wrote, for data that lie at `root` now; files are not looked up.

    Raises:
        UserError: missing or not such a file.
    """
    return tuple(row for _, row in read_rows(path, root, _SAVED_COLUMNS))


def _draw_groups(rows: Sequence[Row], wanted: dict[str, float], seed: int) -> list[str]:
    """A split for every row: a prefix of the shuffled groups per wanted split, the rest "train"."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(group_of(row), []).append(i)
    sizes = {key: sum(rows[i].mask is not None for i in members) for key, members in groups.items()}
    candidates = _shuffled([key for key, size in sizes.items() if size], seed, "split")
    total = sum(sizes.values())
    targets = {split: _target(split, amount, total) for split, amount in wanted.items()}
    drawn = ["train"] * len(rows)
    for split, target in targets.items():
        taken = 0
        # A group of more than twice what is asked for would be the whole split: drawn only where there is no other
        fitting = [group for group in candidates if sizes[group] <= 2 * target] or candidates[:1]
        while target and (not taken or (fitting and abs(taken + sizes[fitting[0]] - target) < target - taken)):
            if len(candidates) < 2:
                asked = " and ".join(f"{name} {amount:g}" for name, amount in wanted.items() if amount)
                raise UserError(
                    f"{total} labelled images in {sum(map(bool, sizes.values()))} groups (patient, else volume, else "
                    f"file) are too few for {asked} beside training; ask for less, or 0"
                )
            group = fitting.pop(0)
            candidates.remove(group)
            taken += sizes[group]
            for i in groups[group]:
                drawn[i] = split
        if taken > 2 * target:
            logging.getLogger(__name__).warning(
                "%s: %d labelled images were drawn for the %d asked for: patients (or volumes, or files) stay whole "
                "and all are so large; ask for more, or name the splits in a manifest",
                *(split, taken, target),
            )
    return drawn


def _target(split: str, amount: float, total: int) -> int:
    """How many labelled images a fraction or number asks for; at least one unless 0."""
    if not (0 <= amount < 1 or (amount >= 1 and float(amount).is_integer())):
        raise UserError(f"{split} {amount:g}: give a fraction below 1 or a whole number of images, as 0.15 or 100")
    if amount >= 1 or amount == 0:
        if amount >= max(total, 1):
            raise UserError(
                f"{split} {amount:g}: there are only {total} labelled images, and some must train; ask for less"
            )
        return int(amount)
    return max(1, round(amount * total))


def _share(percent: float, total: int) -> int:
    """That share of a total, at least one of it where any is asked for, and more than there is above 100 %."""
    exact = percent / 100 * total
    return math.ceil(exact) if exact < 1 or percent > 100 else round(exact)


def _prefix(items: Sequence[T], count: int, asked: str, what: str, seed: int) -> list[T]:
    if count < 1:
        raise UserError(f"labelled {asked!r}: at least one is needed; there are {len(items)} {what}")
    if count > len(items):
        raise UserError(f"labelled {asked!r}: there are only {len(items)} {what}; ask for less")
    return _shuffled(items, seed, "budget")[:count]


def _shuffled(items: Sequence[T], seed: int, purpose: str) -> list[T]:
    def rank(position: int) -> bytes:
        return hashlib.blake2b(f"{purpose}/{seed}/{position}".encode(), digest_size=16).digest()

    return [items[position] for position in sorted(range(len(items)), key=rank)]


def _relative(path: Path | None, root: Path) -> str:
    if path is None:
        return ""
    return (path.relative_to(root) if path.is_relative_to(root) else path.absolute()).as_posix()
