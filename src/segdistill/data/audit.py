"""What would spoil a training or its scores: found in the data, before anything is trained.

`inspect` (inspection.py) decodes each file once and costs the time; `judge` looks at what it found, and again at other
splits of the same rows for a fraction of that; `audit` is both. Leaks are between splits, so hand over the rows after
`assign_splits` to learn about those of a training: where rows have no split yet, copies are warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..formats.images import JPEG_SUFFIXES
from ..types import UserError
from .ambiguity import most_values, threshold_for
from .cache import truth
from .census import census, usable, values_of
from .findings import Desk, Finding, Named
from .inspection import Seen, inspect
from .labels import LabelMapping, MaskValues, build_mapping, mixes_white
from .palettes import WAY_OUT, Palettes
from .presence import presence
from .rows import Row

LEAKS = frozenset({"copies-across-splits", "near-copies-across-splits", "patients-across-splits"})


@dataclass(frozen=True)
class Audit:
    """Findings, errors first, and the facts of a data set (plain JSON values)."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]
    mappings: Mapping[str, LabelMapping]  # data set -> of the masks that are not grey levels; not where it is ambiguous

    @property
    def mapping(self) -> LabelMapping | None:
        """The mapping of a single data set; None where it is ambiguous, or there are no masks."""
        return next(iter(self.mappings.values()), None)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings of severity "error"."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Errors by which a split knows another one's images or patients."""
        return tuple(finding for finding in self.errors if finding.code in LEAKS)

    def to_json(self) -> dict[str, Any]:
        """Facts and findings as plain values."""
        return {"facts": self.facts, "findings": [asdict(finding) for finding in self.findings]}


def audit(
    rows: Sequence[Row],
    *,
    classes: Sequence[str] | None = None,
    threshold: int | None = None,
    root: Path | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Decode every file of the rows once and judge what is in them.

    Args:
        rows: Of a manifest, or of a training: then with splits.
        classes: Class names, background first.
        threshold: Mask values above it are foreground.
        root: Folder that named files are relative to.
        threads: Decoding threads. None: one per core.
        on_progress: Called with (done, total).
    """
    seen = inspect(rows, threshold=threshold, named=len(classes or ()), threads=threads, on_progress=on_progress)
    return judge(rows, seen, classes, threshold, root)


def judge(
    rows: Sequence[Row],
    seen: Sequence[Seen],
    classes: Sequence[str] | None = None,
    threshold: int | None = None,
    root: Path | None = None,
) -> Audit:
    """Findings on rows whose files were inspected, with the same threshold and as many names; reads no file."""
    datasets = dict.fromkeys(row.dataset for row in rows) or {"": None}
    return judge_sets(rows, seen, dict.fromkeys(datasets, Named(root, classes, threshold)))


def judge_sets(rows: Sequence[Row], seen: Sequence[Seen], sets: Mapping[str, Named]) -> Audit:
    """`judge` for the rows of several data sets, each named in `sets`: copies are found across them."""
    desk = Desk(rows, seen, sets)
    mappings: dict[str, LabelMapping] = {}
    ambiguous: list[Finding] = []
    for name in sets:
        mapping, found = _mapping(desk, name)
        ambiguous += found
        if mapping:
            mappings[name] = mapping
    findings = [
        *desk.broken(),
        *ambiguous,
        *desk.turned(),
        *desk.black_elsewhere(),
        *desk.volumes(),
        *desk.patients(),
        *desk.patients_alike(),
        *desk.copies(),
        *desk.near_copies(),
        *(finding for name, mapping in mappings.items() for finding in desk.masks(name, mapping)),
        *(presence(desk, mappings) if not ambiguous else ()),
        *desk.burned_in(),
        *desk.names(),
    ]
    findings.sort(key=lambda finding: finding.severity != "error")
    facts = census(rows, seen, next(iter(mappings.values()), None) if len(sets) == 1 else None)
    if len(sets) > 1:
        parts = {name: desk.members(name) for name in sets}
        facts["sets"] = {
            name: census([rows[i] for i in part], [seen[i] for i in part], mappings.get(name))
            for name, part in parts.items()
        }
    return Audit(tuple(findings), facts, mappings)


def _mapping(desk: Desk, dataset: str) -> tuple[LabelMapping | None, list[Finding]]:
    """What each mask value of a data set means, or the finding that nobody can know."""
    members = desk.members(dataset)
    said, palettes = desk.sets[dataset], Palettes()
    most = most_values(len(said.classes or ()))
    crowded = [i for i in members if desk.seen[i].crowded]
    held = [i for i in members if usable(desk.seen[i])]
    findings = []
    if crowded:
        what = f"masks of more than {most} values, so grey levels, numbered objects or JPEG damage: {len(crowded)}"
        way_out = " or ".join(sorted({desk.seen[i].crowded for i in crowded})) + ", or save the masks again as PNG"
        findings.append(desk.finding("error", "ambiguous-masks", what, way_out, crowded))
    if not held:
        return None, findings
    for i in held:
        if clash := palettes.add(i, desk.seen[i].palette, desk.seen[i].colour):
            pair = (clash.earlier, clash.later)
            return None, [*findings, desk.finding("error", "ambiguous-masks", clash.why, WAY_OUT, pair)]
    packed = said.threshold is None and any(desk.seen[i].colour for i in held)
    counts = Counter(value for i in held for value in values_of(desk.seen[i], packed))
    few = max(1, 0.05 * len(held))
    rare = [i for i in held if any(counts[value] <= few for value in values_of(desk.seen[i], packed))] or held
    if len(counts) > most:
        way_out = threshold_for(sorted(counts), packed)
        what = f"the masks have {len(counts)} different values: grey levels or numbered objects, not classes"
        return None, [*findings, desk.finding("error", "ambiguous-masks", what, way_out, rare)]
    paths = [truth(desk.rows[i]) for i in held]
    jpeg = any(path.suffix.lower() in JPEG_SUFFIXES for path in paths if path)
    apart = not any(packed and mixes_white(values_of(desk.seen[i], packed)) for i in held)
    values = tuple(sorted(counts))
    found = MaskValues(values, tuple(counts[v] for v in values), len(held), packed, said.threshold, jpeg, apart)
    try:
        return build_mapping(found, said.classes), findings
    except UserError as error:
        what, _, way_out = str(error).partition("; ")
        return None, [*findings, desk.finding("error", "ambiguous-masks", what, way_out, rare)]
