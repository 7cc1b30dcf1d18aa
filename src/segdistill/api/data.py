"""A data folder made ready for training: rows, splits, budget, mask mapping, cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ..data.audit import Audit, audit
from ..data.batches import Dataset
from ..data.cache import open_cache, truth
from ..data.labels import LabelMapping, build_mapping, scan_values
from ..data.manifest import load_manifest
from ..data.rows import Row
from ..data.splits import apply_budget, assign_splits, load_splits, save_splits
from ..data.volumes import read_neighbours, with_neighbours
from ..types import UserError
from .options import TrainOptions, parse_classes, parse_size
from .runs import read_json, write_json
from .terminal import bar, console

SPLITS = ("train", "val", "test")
_UNUSABLE = ("unreadable", "size-mismatch", "broken-volume")


def read_mapping(rows: Sequence[Row], options: TrainOptions) -> LabelMapping:
    """Scan the masks and decide what each value means; shown on the terminal."""
    masks = [mask for mask in map(truth, rows) if mask]
    with bar("reading masks") as progress:
        found = scan_values(masks, options.threads, progress, options.threshold)
    mapping = build_mapping(found, parse_classes(options.classes))
    console.print("mask values:\n  " + mapping.describe().replace("\n", "\n  "), markup=False)
    return mapping


def prepare_data(data: Path, run: Path, options: TrainOptions) -> None:
    """Draw the splits and the label budget and write them with the mask mapping into the run folder."""
    manifest = load_manifest(data)
    if not any(row.mask for row in manifest.rows):
        raise UserError(f"{data}: no image has a mask; give masks of the same name in masks/ for some of them")
    rows = assign_splits(manifest, val=options.val, test=options.test, seed=options.seed)
    budget = None if options.labelled is None else str(options.labelled)
    rows = apply_budget(rows, budget, options.seed)
    mapping = read_mapping(rows, options)
    if not any(row.split == "train" and row.mask for row in rows):
        raise UserError(f"{data}: no labelled training image; give masks for some images of the training split")
    if options.neighbours:
        _check_neighbours(rows)
    findings = audit_rows(rows, manifest.root, options)
    write_json(run / "data" / "check.json", findings.to_json())
    save_splits(run / "data" / "splits.csv", rows, root=manifest.root)
    write_json(run / "data" / "mapping.json", mapping.to_json())
    write_json(run / "data" / "data.json", {"name": manifest.name, "root": str(manifest.root.resolve())})


def _check_neighbours(rows: Sequence[Row]) -> None:
    """Before anything is written: every row lies in a volume without gaps, and the first slice of each is grey."""
    around = with_neighbours(rows)
    for row in {row.volume: row for row in rows}.values():
        read_neighbours(around[row.image])


def audit_rows(rows: Sequence[Row], root: Path, options: TrainOptions) -> Audit:
    """Check the data as `segdistill check` does, before anything that a run stands on is written.

    Raises:
        UserError: Files that cannot be used, or a split that knows another one's images or patients.

    Near copies only warn: neighbouring frames and retakes are common in public sets; the report names them.
    """
    with bar("checking data") as progress:
        result = audit(
            rows,
            classes=parse_classes(options.classes),
            threshold=options.threshold,
            root=root,
            threads=options.threads,
            on_progress=progress,
        )
    for broken in (finding for finding in result.errors if finding.code in _UNUSABLE):
        raise UserError(f"{root}: {broken.what} ({', '.join(broken.files)}); {broken.way_out}")
    leaks = [finding for finding in result.leaks if finding.code != "near-copies-across-splits"]
    if leaks and not options.allow_leakage:
        found = "; ".join(f"{leak.what} ({', '.join(leak.files)})" for leak in leaks)
        raise UserError(f"{root}: {found}; scores would be too good: mend the splits, or pass --allow-leakage true")
    return result


def load_data(run: Path, options: TrainOptions) -> tuple[Dataset, LabelMapping, dict[str, Any]]:
    """The data of a run folder, from the cache; UserError when the files changed since the run began."""
    facts = read_json(run / "data" / "data.json")
    rows = load_splits(run / "data" / "splits.csv", root=Path(facts["root"]))
    mapping = LabelMapping.from_json(read_json(run / "data" / "mapping.json"))
    with bar("decoding images") as progress:
        cache = open_cache(
            rows,
            mapping,
            size=parse_size(options.size),
            fit=options.fit,
            neighbours=options.neighbours,
            folder=options.cache or user_cache_path("segdistill", appauthor=False),
            threads=options.threads,
            on_progress=progress,
        )
    if facts.get("hash", cache.data_hash) != cache.data_hash:
        raise UserError(f"{facts['root']}: the images or masks changed since {run} began; start a new run")
    if "hash" not in facts:
        facts["hash"] = cache.data_hash
        write_json(run / "data" / "data.json", facts)
    modalities = tuple(sorted({row.modality for row in rows}))
    return Dataset(cache, rows, mapping.classes, modalities), mapping, facts


def split_table(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Images, masks and patients per split, for the terminal and the report."""
    return [
        {
            "split": split,
            "images": len(part),
            "labelled": sum(row.mask is not None for row in part),
            "patients": len({row.patient for row in part if row.patient}) or "–",
        }
        for split, part in _by_split(rows)
    ]


def scored_rows(rows: Sequence[Row]) -> tuple[str, list[Row]]:
    """What the final scores are taken on: the test split; the validation split only where there is no test."""
    for split in ("test", "val"):
        part = [row for row in rows if row.split == split and row.mask]
        if part:
            return split, part
    return "none", []


def _by_split(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for split in SPLITS:
        yield split, [row for row in rows if row.split == split]
