"""The questions that an audit asks of rows and of what was seen in their files; each answer is a finding."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from ..formats import split_address, stem_of
from ..types import UserError
from .census import pixels_of_values, usable, values_of
from .hashing import LISTED, near_pairs
from .inspection import Seen
from .labels import LabelMapping, MaskValues
from .rows import Row, group_of
from .volumes import volumes

NAMED = 5  # files that a finding names; the rest are counted
KEPT_PAIRS = 200  # whose rows a finding has
NEAR_FULL = 0.95  # foreground share from which a mask looks inverted
_UNTURN = "remove the tag from the images (exiftool -Orientation= FILE)"
STRAY = 0.001  # share of all pixels below which a value of few masks looks like an accident

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One kind of trouble, in one line, and the way out.

    Attributes:
        severity: "error" (scores would be wrong, or training would stop) or "warning".
        code: The kind, e.g. "copies-across-splits"; `LEAKS` names those that make scores too good.
        what: What was found, with its number.
        way_out: What to do.
        files: At most five of those concerned; "a.png (train) = b.png (test)" for pairs.
        more: How many are not named.
        rows: The rows concerned, by number; of pairs the first 200, one after the other.
    """

    severity: Severity
    code: str
    what: str
    way_out: str
    files: tuple[str, ...] = ()
    more: int = 0
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Named:
    """A data set to judge: the folder that its files are named relative to, and what its user says of its masks."""

    root: Path | None = None
    classes: Sequence[str] | None = None
    threshold: int | None = None


@dataclass(frozen=True)
class Desk:
    """Rows and what was seen of them, and the questions asked of both."""

    rows: Sequence[Row]
    seen: Sequence[Seen]
    sets: Mapping[str, Named]

    def name(self, number: int) -> str:
        """A row's image as findings name it: relative to its folder, with its data set where there are several."""
        return self._placed(self.rows[number].dataset, self.rows[number].image)

    def _placed(self, dataset: str, path: Path) -> str:
        root = self.sets[dataset].root
        inside = (path.relative_to(root) if root is not None and path.is_relative_to(root) else path).as_posix()
        return f"{dataset}: {inside}" if len(self.sets) > 1 else inside

    def members(self, dataset: str) -> list[int]:
        """Numbers of the rows of a data set."""
        return [i for i, row in enumerate(self.rows) if row.dataset == dataset]

    def finding(self, severity: Severity, code: str, what: str, way_out: str, numbers: Sequence[int]) -> Finding:
        """A finding about these rows."""
        files = tuple(self.name(number) for number in numbers[:NAMED])
        return Finding(severity, code, what, way_out, files, max(0, len(numbers) - NAMED), tuple(numbers))

    def broken(self) -> Iterator[Finding]:
        """Files that cannot be read, masks that do not fit."""
        unreadable = [i for i, one in enumerate(self.seen) if one.problems]
        if unreadable:
            first = self.seen[unreadable[0]].problems[0]
            what = f"unreadable images or masks: {len(unreadable)}; the first: {first.partition('; ')[0]}"
            yield self.finding("error", "unreadable", what, "replace or remove these files", unreadable)
        unequal = [i for i, one in enumerate(self.seen) if one.size and one.mask_size and one.size != one.mask_size]
        if unequal:
            one = self.seen[unequal[0]]
            image, mask = ("x".join(map(str, reversed(size or ()))) for size in (one.size, one.mask_size))
            what = f"masks of another size than their image: {len(unequal)}; one has {mask}, its image {image}"
            way_out = "export the masks at the size of their images, and check that they belong together"
            sides = [
                i for i in unequal if self._turned(i) and (self.seen[i].mask_size or ())[::-1] == self.seen[i].size
            ]
            if sides:
                what += f"; {len(sides)} with sides swapped, as only the image is turned by its EXIF orientation"
                way_out = f"for masks of the pixels as stored, {_UNTURN}; else {way_out}"
            yield self.finding("error", "size-mismatch", what, way_out, unequal)

    def turned(self) -> Iterator[Finding]:
        """Images that EXIF's orientation turns, and masks of the same size that it does not: drawn on which pixels?"""
        numbers = [i for i, one in enumerate(self.seen) if one.size == one.mask_size and self._turned(i)]
        if numbers:
            what = f"images turned by an EXIF orientation that their masks do not have: {len(numbers)}"
            way_out = f"look at --sheet; right for masks drawn upright; for masks of the pixels as stored, {_UNTURN}"
            yield self.finding("warning", "turned", what, way_out, numbers)

    def black_elsewhere(self) -> Iterator[Finding]:
        """Palette masks in which black is not index 0, which is read as background: right only if that was meant."""
        numbers = [i for i, one in enumerate(self.seen) if one.palette.get(0) and not all(one.palette.values())]
        if numbers:
            first = self.seen[numbers[0]].palette
            at = next(index for index, colour in first.items() if not colour)
            what = f"palette masks in which index 0 is #{first[0]:06x} and index {at} black: {len(numbers)}"
            way_out = "index 0 is read as background: look at --sheet, and save the masks in colour if black is it"
            yield self.finding("warning", "black-elsewhere", what, way_out, numbers)

    def _turned(self, number: int) -> bool:
        one = self.seen[number]
        return one.mask_size is not None and one.orientation != one.mask_orientation

    def volumes(self) -> Iterator[Finding]:
        """Volumes that cannot be scored as volumes: slices missing, doubled, without mask, or of several sizes."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, row in enumerate(self.rows):
            if row.volume and row.split != "train":
                groups[row.dataset, row.volume].append(i)
        for (_, name), numbers in groups.items():
            scored = [i for i in numbers if self.rows[i].mask and self.rows[i].split]
            for part, of in ((numbers, ""), (scored, "of those with a mask, ")):
                try:
                    volumes([self.rows[i] for i in part])
                except UserError as error:
                    what, _, way_out = str(error).partition("; ")
                    yield self.finding("error", "broken-volume", of + what, way_out, part)
                    break
            if len({size for i in numbers if (size := self.seen[i].size)}) > 1:
                what = f"volume {name}: its slices differ in size"
                yield self.finding("error", "broken-volume", what, "mend the column volume", numbers)

    def patients(self) -> Iterator[Finding]:
        """Patients, or volumes (files of slices) where patients are unknown, in several splits."""
        splits: dict[tuple[str, tuple[str, str]], dict[str, int]] = defaultdict(dict)
        for i, row in enumerate(self.rows):
            if row.split:
                splits[row.dataset, group_of(row)].setdefault(row.split, i)
        torn = [(key, found) for key, found in splits.items() if len(found) > 1]
        if torn:
            files = tuple(f"{self._group(*key)} ({', '.join(sorted(found))})" for key, found in torn[:NAMED])
            yield Finding(
                "error",
                "patients-across-splits",
                f"patients or volumes in more than one split: {len(torn)}",
                "keep each in one split, or leave the split column empty and train draws by patient",
                files,
                max(0, len(torn) - NAMED),
                tuple(i for _, found in torn for i in found.values()),
            )

    def patients_alike(self) -> Iterator[Finding]:
        """Patients whose names differ only in case, blanks around them or accents: one, most likely."""
        spelt: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for i, row in enumerate(self.rows):
            if row.patient:
                name = unicodedata.normalize("NFC", row.patient).strip().casefold()
                spelt[row.dataset, name].setdefault(row.patient, i)
        alike = [names for names in spelt.values() if len(names) > 1]
        if alike:
            what = f"patients whose names differ only in case or blanks: {len(alike)}"
            way_out = "write each patient in one way if it is one: two count as two and may be in two splits"
            files = tuple(" = ".join(names) for names in alike[:NAMED])
            numbers = tuple(i for names in alike for i in names.values())
            yield Finding("warning", "patients-alike", what, way_out, files, max(0, len(alike) - NAMED), numbers)

    def _group(self, dataset: str, group: tuple[str, str]) -> str:
        kind, name = group
        if kind == "file":
            return self._placed(dataset, Path(name))
        return f"{dataset}: {name}" if len(self.sets) > 1 else name

    def copies(self) -> Iterator[Finding]:
        """Images equal in every pixel."""
        groups: dict[bytes, list[int]] = defaultdict(list)
        for i, one in enumerate(self.seen):
            if one.digest:
                groups[one.digest].append(i)
        pairs = [
            pair for group in groups.values() for pair in pairwise(sorted(group, key=lambda i: self.rows[i].split))
        ]
        yield from self._pairs("copies", "equal in every pixel", "=", pairs)

    def near_copies(self) -> Iterator[Finding]:
        """Images that are one picture saved twice, or neighbouring frames."""
        first = {one.digest: i for i, one in reversed(list(enumerate(self.seen))) if one.picture is not None}
        numbers = sorted(first.values())  # of equal ones, one
        if len(numbers) < 2:
            return
        pictures = np.stack([picture for i in numbers if (picture := self.seen[i].picture) is not None])
        # Frames of a patient are alike, and of no harm while they stay in one split.
        known = ["/".join((row.split, row.dataset, *group_of(row))) for row in map(self.rows.__getitem__, numbers)]
        splits = [self.rows[i].split for i in numbers]
        pairs = [(numbers[a], numbers[b]) for a, b in near_pairs(pictures, known, splits)]
        yield from self._pairs("near-copies", "nearly equal", "~", pairs)

    def _pairs(self, code: str, what: str, sign: str, pairs: Sequence[tuple[int, int]]) -> Iterator[Finding]:
        def leaks(pair: tuple[int, int]) -> bool:
            one, other = (self.rows[i].split for i in pair)
            return bool(one and other and one != other)

        across, within = [p for p in pairs if leaks(p)], [p for p in pairs if not leaks(p)]
        if across:
            said = f"images of different splits that are {what}: {_count(across)}; scores would be too good"
            way_out = "remove one of each pair, or give both one patient in the manifest and keep it in one split"
            if any(self.rows[a].dataset != self.rows[b].dataset for a, b in across):
                way_out = "remove one of each pair; of different data sets, or give both one split in the manifests"
            yield self._paired("error", f"{code}-across-splits", said, way_out, sign, across)
        if within:
            unsplit = any(not self.rows[i].split for p in within for i in p)
            said = f"images that are {what}: {_count(within)}"
            way_out = "remove one of each pair" + (
                ", or give both one patient in a manifest: a drawn split may part them" if unsplit else ""
            )
            yield self._paired("warning", code, said, way_out, sign, within)

    def _paired(
        self, severity: Severity, code: str, what: str, way_out: str, sign: str, pairs: Sequence[tuple[int, int]]
    ) -> Finding:
        def shown(i: int) -> str:
            return self.name(i) + (f" ({self.rows[i].split})" if self.rows[i].split else "")

        files = tuple(f"{shown(a)} {sign} {shown(b)}" for a, b in pairs[:NAMED])
        rows = tuple(i for pair in pairs[:KEPT_PAIRS] for i in pair)
        return Finding(severity, code, what, way_out, files, max(0, len(pairs) - NAMED), rows)

    def masks(self, dataset: str, mapping: LabelMapping) -> Iterator[Finding]:
        """Masks without foreground, nearly full ones, values that look like accidents."""
        background = {value for value, index in zip(mapping.found.values, mapping.indices, strict=True) if index == 0}
        empty, full = [], []
        for i in self.members(dataset):
            one = self.seen[i]
            if usable(one):
                values = values_of(one, mapping.found.packed_rgb)
                share = 1 - sum(values.get(value, 0) for value in background) / sum(values.values())
                if share == 0:
                    empty.append(i)
                elif share > NEAR_FULL:
                    full.append(i)
        if empty:
            what = f"empty masks: {len(empty)}"
            way_out = "right where there is nothing to find; an image that nobody annotated needs no mask at all"
            yield self.finding("warning", "empty-masks", what, way_out, empty)
        if full:
            what = f"masks of more than {NEAR_FULL:.0%} foreground: {len(full)}"
            yield self.finding("warning", "near-full-masks", what, "look whether they are inverted", full)
        yield from self._strays(dataset, mapping.found)

    def _strays(self, dataset: str, found: MaskValues) -> Iterator[Finding]:
        members = self.members(dataset)
        pixels = pixels_of_values([self.seen[i] for i in members], found.packed_rgb)
        rare = {
            value
            for value, count in zip(found.values, found.counts, strict=True)
            if len(found.values) > 2 and count <= max(1, 0.02 * found.masks) and pixels[value] < STRAY * pixels.total()
        }
        if rare and found.masks > 2:
            holders = [
                i for i in members if usable(self.seen[i]) and rare & values_of(self.seen[i], found.packed_rgb).keys()
            ]
            what = (
                f"mask values {', '.join(map(found.shown, sorted(rare)))} occur in {len(holders)} masks, in few pixels"
            )
            way_out = "correct these masks if that is no class: resized or JPEG masks hold values between the classes"
            yield self.finding("warning", "stray-values", what, way_out, holders)

    def burned_in(self) -> Iterator[Finding]:
        """DICOM images whose pixels may say who the patient is."""
        numbers = [i for i, row in enumerate(self.rows) if self.seen[i].burned_in]
        if numbers:
            what = f"DICOM images that have, or may have, text burned into their pixels: {len(numbers)}"
            way_out = "look at some before you share them, the report or the overlays: names in pixels stay in pixels"
            yield self.finding("warning", "burned-in", what, way_out, numbers)

    def names(self) -> Iterator[Finding]:
        """Files that are one on systems that ignore case, or compose accents."""
        groups: dict[str, list[int]] = defaultdict(list)
        for i, row in enumerate(self.rows):
            file, slice = split_address(row.image)
            name = f"{file.with_name(stem_of(file))}#{slice}"
            groups[unicodedata.normalize("NFC", name).casefold()].append(i)
        numbers = [i for group in groups.values() if len(group) > 1 for i in group]
        if numbers:
            what = f"image names that differ only in case, accents or suffix: {len(numbers)}"
            way_out = "rename them: on Windows and macOS one replaces the other"
            yield self.finding("warning", "names-collide", what, way_out, numbers)


def _count(pairs: Sequence[tuple[int, int]]) -> str:
    return f"{'at least ' * (len(pairs) >= LISTED)}{len(pairs)} pair{'s' * (len(pairs) != 1)}"
