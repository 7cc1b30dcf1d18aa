"""Counts, sizes, modalities and class frequencies of a data set whose files were inspected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .cache import truth
from .inspection import Seen
from .labels import LabelMapping
from .rows import Row


def usable(one: Seen) -> bool:
    """Whether the row has a mask whose values can be classes: not too many."""
    return bool(one.values) and not one.crowded


def census(rows: Sequence[Row], seen: Sequence[Seen], mapping: LabelMapping | None) -> dict[str, Any]:
    """Counts, sizes, modalities and class frequencies."""
    sizes = Counter(one.size for one in seen if one.size)
    areas = sorted(sizes, key=lambda size: size[0] * size[1])
    splits: dict[str, Any] = {}
    for split in dict.fromkeys(row.split for row in rows):
        part = [row for row in rows if row.split == split]
        patients = len({row.patient for row in part if row.patient})
        labelled = sum(truth(row) is not None for row in part)
        splits[split or "none"] = {"images": len(part), "with mask": labelled, "patients": patients or None}
    return {
        "images": len(rows),
        "with mask": sum(truth(row) is not None for row in rows),
        "volumes": len({row.volume for row in rows if row.volume}),
        "patients": len({row.patient for row in rows if row.patient}) or None,
        "splits": splits,
        "modalities": dict(Counter(row.modality or "unknown" for row in rows)),
        "sizes": {
            "different": len(sizes),
            "smallest": areas[0],
            "commonest": sizes.most_common(1)[0][0],
            "largest": areas[-1],
        }
        if sizes
        else None,
        "classes": _frequencies(seen, mapping) if mapping else None,
    }


def _frequencies(seen: Sequence[Seen], mapping: LabelMapping) -> list[dict[str, Any]]:
    """Per class its share of all mask pixels and of the masks."""
    found = mapping.found
    pixels = pixels_of_values(seen, found.packed_rgb)
    indices = dict(zip(found.values, mapping.indices, strict=True))
    masks = Counter(i for one in seen if usable(one) for i in {indices[v] for v in values_of(one, found.packed_rgb)})
    shares = Counter[int]()
    for value, count in pixels.items():
        shares[indices[value]] += count
    return [
        {"name": name, "pixels": shares[i] / pixels.total(), "masks": masks[i] / found.masks}
        for i, name in enumerate(mapping.classes)
    ]


def pixels_of_values(seen: Sequence[Seen], packed: bool) -> Counter[int]:
    """Pixels of each raw value over all masks."""
    total = Counter[int]()
    for one in filter(usable, seen):
        total.update(values_of(one, packed))
    return total


def values_of(one: Seen, packed: bool) -> dict[int, int]:
    """A mask's values and pixels; among masks in colour a grey value is a colour, too: 255 is #ffffff."""
    return {value * 0x010101 if packed and not one.colour else value: n for value, n in one.values.items()}
