"""From the raw values found in masks to class indices: looked up once, shown, saved, and stopped where ambiguous.

Not here: which pixels to ignore (there is no ignore index; every value is a class), and any guess by how often a value
occurs: only which values occur counts, so the mapping does not change with the number of images.
"""

from __future__ import annotations

import colorsys
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import decode_mask
from ..formats.images import JPEG_SUFFIXES, is_packed
from ..types import UserError
from .ambiguity import END, WHITE, check_values, most_values, threshold_for
from .palettes import WAY_OUT, Palettes, colours_of
from .rows import by_file

_UNSEEN = 255  # in the lookup table; there are at most 255 classes
_GREY = 0x010101  # grey g as a packed colour is g times this
_PORTION = 256  # masks handed to the threads at a time
_OKABE_ITO = (  # distinct for colour-blind readers; Okabe & Ito 2008, without black
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True)
class MaskValues:
    """What a scan found: the raw values in ascending order and in how many masks each one occurs."""

    values: tuple[int, ...]
    counts: tuple[int, ...]
    masks: int
    packed_rgb: bool = False  # values are colours 0xRRGGBB
    threshold: int | None = None  # values are 0 and 1, for "at most" and "above" it
    jpeg: bool = False  # some masks are JPEG files, whose values are not exact
    white_apart: bool = field(default=False, compare=False)  # no mask holds white beside a colour; not saved

    def shown(self, value: int) -> str:
        """A value as a person knows it: 255, #ff0000, or its side of the threshold."""
        if self.threshold is not None:
            return f"above {self.threshold}" if value else f"at most {self.threshold}"
        return f"#{value:06x}" if self.packed_rgb else str(value)

    def listed(self) -> str:
        """All values in one line."""
        return ", ".join(map(self.shown, self.values))


def scan_values(
    masks: Iterable[Path],
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    threshold: int | None = None,
    named: int = 0,
) -> MaskValues:
    """Read every mask and collect its raw values; `on_progress(done, total)` is called as they come in.

    `named` is the number of classes that have names: so many values, or 32, may be classes.

    Raises:
        UserError: no masks, an unreadable one, palettes that contradict each other, or too many values (stops at the
            mask that brought the last).
    """
    paths = list(masks)
    paths = [paths[i] for i in by_file(paths)]
    if not paths:
        raise UserError("no masks to learn from; at least one image needs a mask of the same name in masks/")
    grey: Counter[int] = Counter()
    packed: Counter[int] = Counter()
    palettes, white_apart = Palettes(), True
    for done, one in enumerate(_scan_each(paths, threads, threshold), 1):
        path = paths[done - 1]
        if clash := palettes.add(done - 1, one.colours, one.in_colour):
            raise UserError(f"{paths[clash.earlier]} and {paths[clash.later]}: {clash.why}; {WAY_OUT}")
        (packed if one.in_colour and threshold is None else grey).update(one.values)
        if packed and any(not 0 <= value <= 255 for value in grey):
            raise UserError(f"{path}: masks in colour and masks with grey values above 255; save all in one way")
        white_apart &= not mixes_white(value if one.in_colour else value * _GREY for value in one.values)
        if len(merged := _merged(grey, packed)) > most_values(named):
            raise UserError(
                f"{path}: more than {most_values(named)} different mask values up to here, so they look like grey "
                f"levels or numbered objects, not classes; {threshold_for(sorted(merged), bool(packed))}"
            )
        if on_progress:
            on_progress(done, len(paths))
    found = _merged(grey, packed)
    values = sorted(found)
    jpeg = any(path.suffix.lower() in JPEG_SUFFIXES for path in paths)
    counts = tuple(found[value] for value in values)
    return MaskValues(tuple(values), counts, len(paths), bool(packed), threshold, jpeg, white_apart)


@dataclass(frozen=True)
class LabelMapping:
    """Raw mask value -> class index: `found.values[i]` becomes `indices[i]`, and `classes[index]` is its name."""

    found: MaskValues
    indices: tuple[int, ...]
    classes: tuple[str, ...]
    annotated: tuple[int, ...] | None = None  # indices of the set's own classes, in their order; None: all are its own

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each raw value with its class index."""
        return zip(self.found.values, self.indices, strict=True)

    def marks(self) -> tuple[bool, ...]:
        """Per class, whether these masks would show it."""
        return tuple(self.annotated is None or index in self.annotated for index in range(len(self.classes)))

    def apply(self, raw: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Raw values (H, W) from `read_mask` to class indices (H, W), uint8.

        Raises:
            UserError: a value that the scan did not see.
        """
        if self.found.threshold is not None:
            above = _above(raw, self.found.threshold)
            return above if self.annotated is None else np.array(self.annotated, np.uint8)[above]
        if is_packed(raw) and not self.found.packed_rgb:
            raise UserError(f"a mask in colour, but the mask values known so far are grey: {self.found.listed()}")
        if self.found.packed_rgb and not is_packed(raw):
            raw = raw.astype(np.int64) * _GREY
        low, high = (int(raw.min()), int(raw.max())) if raw.size else (0, 0)
        if low < 0 or high >= len(self._table):
            raise self._unseen(low if low < 0 else high)
        labels: NDArray[np.uint8] = self._table[raw]
        if (labels == _UNSEEN).any():
            raise self._unseen(int(raw[labels == _UNSEEN][0]))
        return labels

    def describe(self) -> str:
        """One line per raw value, and one per class that no mask holds; for the log."""
        found = self.found
        lines = [
            f"{found.shown(value)} -> {index} {self.classes[index]} (present in {count} of {found.masks} masks)"
            for value, index, count in zip(found.values, self.indices, found.counts, strict=True)
        ]
        absent = [index for index, own in enumerate(self.marks()) if own and index not in self.indices]
        return "\n".join(lines + [f"nothing -> {index} {self.classes[index]} (in no mask)" for index in absent])

    def to_json(self) -> dict[str, Any]:
        """One flat dict of lists, numbers and strings; `from_json` reads it back."""
        fields = asdict(self.found) | {"indices": self.indices, "classes": self.classes}
        del fields["white_apart"]  # decided whether the values are ambiguous; these are not
        if self.annotated is not None:
            fields["annotated"] = self.annotated
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> LabelMapping:
        """The mapping that `to_json` gave.

        Raises:
            UserError: not such a mapping.
        """
        try:
            known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
            indices, classes, annotated = known.pop("indices"), known.pop("classes"), known.pop("annotated", None)
            found = MaskValues(**known)
            whole = all(type(n) is int for n in (*found.values, *found.counts, *indices, found.masks))
            same_length = len(found.values) == len(found.counts) == len(indices)
            if not (whole and same_length and 0 <= min(indices) <= max(indices) < len(classes) <= _UNSEEN):
                raise ValueError
            if not 0 <= min(found.values) <= max(found.values) < END:
                raise ValueError
            if annotated is not None and not set(indices) <= set(annotated) <= set(range(len(classes))):
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError("the saved label mapping is damaged; restore the run's file or start a new run") from error
        return cls(found, indices, classes, annotated)

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        size = next(size for size in (1 << 8, 1 << 16, END) if size > max(self.found.values))
        table = np.full(size, _UNSEEN, np.uint8)
        table[list(self.found.values)] = self.indices
        return table

    def _unseen(self, value: int) -> UserError:
        return UserError(
            f"mask value {self.found.shown(value)} is not among those known so far: {self.found.listed()}; "
            "correct that mask, or start anew with it among the others"
        )


def build_mapping(found: MaskValues, classes: Sequence[str] | None = None) -> LabelMapping:
    """Decide which raw value is which class; `classes` are the names by index, background first.

    Two values are background (the lower) and foreground. Colours: black is background, the others ascend. Values that
    are class indices already stay; ids with gaps close up in ascending order. With names, their number must be the
    number of values, unless every value is below it: a class that no mask holds then keeps its index.

    Raises:
        UserError: ambiguous values, names that do not fit, duplicate names, only background and no names.
    """
    if classes is not None:
        check_names(classes)
    check_values(found, classes)
    raw = found.values
    if found.threshold is not None:
        count, indices = 2, raw
    elif classes is not None and len(raw) < len(classes) and raw[-1] < len(classes):
        count, indices = len(classes), raw
    else:
        count, indices = len(raw), tuple(range(len(raw)))
    foreground = ("foreground",) if count == 2 else tuple(f"class_{i}" for i in range(1, count))
    names = ("background", *foreground) if classes is None else tuple(classes)
    if len(names) != count:
        merge = len(names) == 2 < len(raw)
        raise UserError(
            f"{len(names)} class names ({', '.join(names)}) for {len(raw)} mask values ({found.listed()}); name "
            "each value in ascending order, or renumber the masks 0, 1, 2, ... in the order of the names"
            + (f", or {threshold_for(raw, found.packed_rgb)}" if merge else "")
        )
    return LabelMapping(found, indices, names)


def as_known(found: MaskValues, known: Sequence[LabelMapping]) -> LabelMapping | None:
    """The mapping of values that known mappings hold, all with one meaning; None where there is none, or another.

    For later masks of the same kind: where a class occurs in none of them, their values alone would say something else.
    """
    meanings = possible_meanings(found, known)
    return meanings[0] if len(meanings) == 1 else None


def possible_meanings(found: MaskValues, known: Sequence[LabelMapping]) -> list[LabelMapping]:
    """What values may mean that known mappings hold, each meaning once."""
    meanings = (
        LabelMapping(found, tuple(map(dict(one.pairs()).__getitem__, found.values)), one.classes, one.annotated)
        for one in known
        if (one.found.packed_rgb, one.found.threshold) == (found.packed_rgb, found.threshold)
        and {*found.values} <= {*one.found.values}
    )
    return list(dict.fromkeys(meanings))


def colours(count: int) -> list[tuple[int, int, int]]:
    """`count` distinct RGB colours by class index: black for background, Okabe-Ito, then hues a golden angle apart."""
    chosen = [(0, 0, 0), *_OKABE_ITO]
    step = 0
    while len(chosen) < count:
        hue, value = (0.07 + step * 0.618033988749895) % 1, (1.0, 0.75, 0.5)[step % 3]
        red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.75, value))
        if (red, green, blue) not in chosen:
            chosen.append((red, green, blue))
        step += 1
    return chosen[:count]


class _OneMask(NamedTuple):
    values: list[int]
    in_colour: bool
    colours: dict[int, int]  # of a palette mask, by index


def _scan_each(paths: Sequence[Path], threads: int | None, threshold: int | None) -> Iterator[_OneMask]:
    """Every mask in order with its values, read by threads, in portions: an early stop waits for few."""
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for start in range(0, len(paths), _PORTION):
            portion = paths[start : start + _PORTION]
            yield from pool.map(partial(_distinct, threshold=threshold), portion)


def _distinct(path: Path, *, threshold: int | None) -> _OneMask:
    """The values of one mask, or their sides of the threshold; of a hopeless mask, enough to see that it is one."""
    raw, _, palette = decode_mask(path)
    in_colour = is_packed(raw)
    colours = colours_of(_values(raw), palette) if palette else {}
    held = _values(raw if threshold is None else _above(raw, threshold))
    return _OneMask(held if len(held) <= 256 else [*held[:256], held[-1]], in_colour, colours)


def _values(raw: NDArray[np.integer[Any]]) -> list[int]:
    distinct = np.flatnonzero(np.bincount(raw.ravel())) if raw.dtype == np.uint8 else np.unique(raw)
    return [int(value) for value in distinct]


def mixes_white(colours: Iterable[int]) -> bool:
    """Whether these packed colours are white and another one, black aside."""
    held = {*colours} - {0}
    return WHITE in held and len(held) > 1


def _above(raw: NDArray[np.integer[Any]], threshold: int) -> NDArray[np.uint8]:
    if is_packed(raw):
        raw = np.maximum(np.maximum(raw >> 16, (raw >> 8) & 255), raw & 255)
    return (raw > threshold).astype(np.uint8)


def _merged(grey: Counter[int], packed: Counter[int]) -> Counter[int]:
    """Both counts in one; among colours a grey mask is one, too: 255 is #ffffff, not the blue 0x0000ff."""
    if not packed:
        return grey
    return packed + Counter({value * _GREY: count for value, count in grey.items()})


def check_names(classes: Sequence[str]) -> None:
    """UserError unless these can name classes: two to 255, no two alike, none empty, background first."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(f"class name {twice[0]!r} is given twice in {', '.join(classes)}; each class needs its own")
    if late := [name for name in classes[1:] if name.strip().lower() == "background"]:
        others = [name for name in classes if name not in late]
        raise UserError(
            f"class names {', '.join(classes)}: the first is the background, the lowest mask value; give "
            f"{','.join([late[0], *others])}, or invert the masks if their background is not the lowest"
        )
    if not 2 <= len(classes) <= _UNSEEN or not all(name.strip() for name in classes):
        raise UserError(f"class names {', '.join(classes)!r}: give background and 1 to 254 more, as background,polyp")
