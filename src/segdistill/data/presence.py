"""Which classes the masks of each split show: what no training mask shows is not learned, elsewhere not scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from .census import usable, values_of
from .findings import Desk, Finding
from .labels import LabelMapping

_SPLITS = {"train": "training", "val": "validation", "test": "test", "": "unassigned"}


def presence(desk: Desk, mappings: Mapping[str, LabelMapping]) -> Iterator[Finding]:
    """No foreground to learn from, and classes missing in a split; masks that a label budget hides do not count."""
    masked: dict[str, list[int]] = defaultdict(list)  # split -> rows
    shown: dict[tuple[str, str], list[int]] = defaultdict(list)  # (split, class) -> rows that show it
    for i, (row, one) in enumerate(zip(desk.rows, desk.seen, strict=True)):
        mapping = mappings.get(row.dataset)
        if row.mask and mapping and usable(one):
            masked[row.split].append(i)
            for name in _foreground(values_of(one, mapping.found.packed_rgb), mapping):
                shown[row.split, name].append(i)
    learned = "train" if "train" in masked else ""
    if masked[learned] and not any(split == learned for split, _ in shown):
        yield _nothing_to_learn(desk, learned, masked[learned])
    splits = [split for split in _SPLITS if masked[split]]
    for name in dict.fromkeys(name for one in mappings.values() for name in one.classes[1:]):
        missing = [split for split in splits if (split, name) not in shown]
        if missing:
            holders = [i for split in splits for i in shown.get((split, name), ())]
            yield _missing(desk, name, missing if len(missing) < len(splits) else [], holders)


def _foreground(values: Mapping[int, int], mapping: LabelMapping) -> set[str]:
    indices = dict(mapping.pairs())
    return {mapping.classes[indices[value]] for value in values if indices[value] != 0}


def _nothing_to_learn(desk: Desk, split: str, rows: list[int]) -> Finding:
    of = "labelled training " if split else ""
    what = f"none of the {len(rows)} {of}masks shows any foreground"
    way_out = (
        "look at the mask values and at --threshold, draw others with --seed or more with --labelled, or give masks"
    )
    return desk.finding("error", "no-foreground", what, way_out, rows)


def _missing(desk: Desk, name: str, splits: list[str], holders: list[int]) -> Finding:
    """`splits` is empty where no mask at all shows the class."""
    where = f" of the {' and '.join(_SPLITS[split] for split in splits)} split" if splits else ""
    others = "; these show it" if holders else ""
    way_out = "what no training mask shows is not learned, elsewhere not scored: give masks of it, or draw other splits"
    return desk.finding("warning", "missing-class", f"class {name} is in no mask{where}{others}", way_out, holders)
