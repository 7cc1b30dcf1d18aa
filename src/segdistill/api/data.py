"""Data folders made ready for training: rows, splits, budget, mask mapping, cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from ..data.audit import Audit, judge_sets
from ..data.cache import Cache, join_caches, open_cache, truth
from ..data.findings import Named
from ..data.inspection import Seen, inspect
from ..data.labels import LabelMapping, MaskValues, scan_values
from ..data.manifest import load_manifest
from ..data.rows import Manifest, Row
from ..data.several import Source, into_classes, join_manifests, join_mappings, marks_of, per_set
from ..data.splits import apply_budget, assign_splits, load_splits, save_splits
from ..data.volumes import read_neighbours, with_neighbours
from ..types import Known, UserError
from .options import TrainOptions, parse_classes, parse_size, parse_threshold
from .runs import read_json, write_json
from .terminal import bar, console

if TYPE_CHECKING:
    from ..data.batches import Dataset

SPLITS = ("train", "val", "test")
_UNUSABLE = ("unreadable", "size-mismatch", "broken-volume", "no-foreground")


@dataclass(frozen=True)
class Loaded:
    """The data of a run: its rows with their pixels, and the data sets they come from by name."""

    dataset: Dataset
    sources: dict[str, Source]
    facts: dict[str, Any]  # name, hash


def load_sets(folders: Sequence[Path], modality: str | None = None) -> list[Manifest]:
    """The data sets of these folders or CSV files, each row named after its own; UserError as `load_manifest`."""
    return join_manifests([load_manifest(folder) for folder in folders], modality)


def named_sets(sets: Sequence[Manifest], classes: str | None, threshold: int | str | None) -> dict[str, Named]:
    """Data set -> what the options say of its masks."""
    names = [one.name for one in sets]
    said, above = per_set(classes, names, "--classes"), per_set(threshold, names, "--threshold")
    return {
        one.name: Named(one.root, parse_classes(said.get(one.name)), parse_threshold(above.get(one.name)))
        for one in sets
    }


def read_mappings(
    rows: Sequence[Row], sets: Mapping[str, Named], threads: int | None = None
) -> dict[str, LabelMapping]:
    """Scan the masks and decide what each value means in each data set; shown on the terminal."""
    found: dict[str, MaskValues] = {}
    for name, said in sets.items():
        masks = [mask for row in rows if row.dataset == name and (mask := truth(row))]
        if masks or len(sets) == 1:
            with bar("reading masks") as progress:
                found[name] = scan_values(masks, threads, progress, said.threshold, len(said.classes or ()))
    names = {name: said.classes for name, said in sets.items() if said.classes}
    mappings = join_mappings(found, names)
    for name, mapping in mappings.items():
        of = f" of {name}" if len(sets) > 1 else ""
        console.print(f"mask values{of}:\n  " + mapping.describe().replace("\n", "\n  "), markup=False)
    return mappings


def prepare_data(
    folders: Sequence[Path],
    run: Path,
    options: TrainOptions,
    known: Known | None = None,
    refuse: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> None:
    """Draw the splits and the label budgets and write them with the mask mappings into the run folder.

    `known` are the classes and modalities of a student that gets one more; the data's come after them. `refuse` may
    raise UserError for the rows with their splits, before anything is written.
    """
    sets = load_sets(folders, options.modality)
    if known:
        options = beside_known(sets, options, known)
    where = ", ".join(map(str, folders))
    if not any(row.mask for one in sets for row in one.rows):
        raise UserError(f"{where}: no image has a mask; give masks of the same name in masks/ for some of them")
    budgets = per_set(options.labelled, [one.name for one in sets], "--labelled")
    drawn = {one.name: _drawn(one, budgets.get(one.name), options, len(sets) > 1) for one in sets}
    rows = [row for part in drawn.values() for row in part]
    _show_sets(sets, drawn)
    said = named_sets(sets, options.classes, options.threshold)
    mappings = read_mappings(rows, said, options.threads)
    if known:
        new = [name for one in mappings.values() for name in one.classes[1:] if name not in known.classes]
        classes = (*known.classes, *dict.fromkeys(new))
        mappings = {name: into_classes(one, classes) for name, one in mappings.items()}
    if not any(row.split == "train" and row.mask for row in rows):
        raise UserError(f"{where}: no labelled training image; give masks for some images of the training split")
    if options.neighbours:
        _check_neighbours(rows)
    findings = audit_rows(rows, said, where, options)
    if not scored_rows(rows)[1]:
        raise UserError(
            f"{where}: no labelled test or validation image, so there would be no scores; give --val or --test above "
            "0, or masks for images of those splits"
        )
    refuse(rows)
    write_json(run / "data" / "check.json", findings.to_json())
    for one in sets:
        folder = _set_folder(run, one.name, len(sets))
        folder.mkdir(parents=True, exist_ok=True)
        save_splits(folder / "splits.csv", drawn[one.name], root=one.root)
        if one.name in mappings:
            write_json(folder / "mapping.json", mappings[one.name].to_json())
    facts: dict[str, Any] = {"name": ", ".join(one.name for one in sets)}
    if len(sets) == 1:
        facts["root"] = str(sets[0].root.resolve())
    else:
        facts["sets"] = {one.name: str(one.root.resolve()) for one in sets}
    write_json(run / "data" / "data.json", facts)


def beside_known(sets: Sequence[Manifest], options: TrainOptions, known: Known) -> TrainOptions:
    """The options with the classes' names, where they follow from the student's.

    Raises:
        UserError: not one new modality, another size or fit than the student's, or classes that nobody can know.
    """
    names = sorted({row.modality for one in sets for row in one.rows})
    if len(names) != 1 or not names[0] or names[0] in known.modalities:
        given, old = (", ".join(name or "no name" for name in some) for some in (names, known.modalities))
        raise UserError(
            f"the data are of modality {given}; a student of {old} gets one new one: name it with --modality"
        )
    needed = (known.size, known.fit, known.neighbours)
    if (parse_size(options.size), options.fit, options.neighbours) != needed:
        raise UserError(
            f"the student takes --size {known.size[0]}x{known.size[1]} --fit {known.fit} --neighbours "
            f"{known.neighbours}; give the same"
        )
    if options.classes:
        return options
    if len(known.classes) > 2:
        raise UserError(
            f"the student knows {', '.join(known.classes)}; name the classes of the new masks, background first, with "
            "--classes: equal names are one class"
        )
    return replace(options, classes=",".join(known.classes))


def _show_sets(sets: Sequence[Manifest], drawn: Mapping[str, Sequence[Row]]) -> None:
    """A line per data set; of several a modality that is only the set's name is said to be that."""
    for one in sets:
        rows = drawn[one.name]
        modalities = sorted({row.modality for row in rows})
        shown = ", ".join("unknown, so its own" if name == one.name else name for name in modalities)
        told = f"modality {shown}; " if len(sets) > 1 or any(modalities) else ""
        counts = ", ".join(f"{split} {_counted(part)}" for split, part in _by_split(rows))
        console.print(f"{one.name}: {told}{counts}", markup=False, soft_wrap=True)


def _counted(rows: Sequence[Row]) -> str:
    labelled = sum(row.mask is not None for row in rows)
    return f"{len(rows)}" if labelled == len(rows) else f"{len(rows)} ({labelled} with a mask)"


def _drawn(one: Manifest, budget: str | None, options: TrainOptions, several: bool) -> tuple[Row, ...]:
    """A data set's rows with their splits and its label budget, drawn as if it were alone."""
    if several and not any(row.mask and row.split in ("", "train") for row in one.rows):  # nothing to draw from
        return tuple(replace(row, split=row.split or "train") for row in one.rows)
    try:
        rows = assign_splits(one, val=options.val, test=options.test, seed=options.drawn_by)
        return apply_budget(rows, budget, options.drawn_by)
    except UserError as error:
        raise UserError(f"{one.name}: {error}" if several else str(error)) from None


def _set_folder(run: Path, name: str, count: int) -> Path:
    """Where a run keeps what it knows of a data set: data/ if it is alone, else a folder of its own below."""
    return run / "data" if count == 1 else run / "data" / "sets" / name


def _check_neighbours(rows: Sequence[Row]) -> None:
    """Before anything is written: every row lies in a volume without gaps, and the first slice of each is grey."""
    around = with_neighbours(rows)
    for row in {(row.dataset, row.volume): row for row in rows}.values():
        read_neighbours(around[row.image])


def inspect_sets(rows: Sequence[Row], sets: Mapping[str, Named], threads: int | None) -> list[Seen]:
    """Look at each file once, with its data set's threshold; rows of a set lie together, in the order of `sets`."""
    seen: list[Seen] = []
    with bar("reading images and masks") as progress:
        for name, said in sets.items():
            part = [row for row in rows if row.dataset == name]
            done = len(seen)
            seen += inspect(
                part,
                threshold=said.threshold,
                named=len(said.classes or ()),
                threads=threads,
                on_progress=lambda count, _, done=done: progress(done + count, len(rows)),  # type: ignore[misc]
            )
    return seen


def audit_rows(rows: Sequence[Row], sets: Mapping[str, Named], where: str, options: TrainOptions) -> Audit:
    """Check the data as `segdistill check` does, before anything that a run stands on is written.

    Raises:
        UserError: Files that cannot be used, or a split that knows another one's images or patients.

    Near copies only warn: neighbouring frames and retakes are common in public sets; the report names them.
    """
    result = judge_sets(rows, inspect_sets(rows, sets, options.threads), sets)
    root = next(iter(sets.values())).root if len(sets) == 1 else where
    for broken in (finding for finding in result.errors if finding.code in _UNUSABLE):
        raise UserError(f"{root}: {broken.what} ({', '.join(broken.files)}); {broken.way_out}")
    leaks = [finding for finding in result.leaks if finding.code != "near-copies-across-splits"]
    if leaks and not options.allow_leakage:
        found = "; ".join(f"{leak.what} ({', '.join(leak.files)})" for leak in leaks)
        raise UserError(f"{root}: {found}; scores would be too good: mend the splits, or pass --allow-leakage true")
    return result


def run_around(path: Path) -> Path | None:
    """The run that a path is, or in which it lies, as a student or an exported file does."""
    kept = ("run.json", "data/data.json")
    return next((run for run in (path, *path.resolve().parents[:2]) if all((run / one).exists() for one in kept)), None)


def saved_sets(run: Path) -> tuple[dict[str, Source], list[list[Row]]]:
    """The data sets of a run folder by name, and the rows of each with the split that was drawn; no pixel is read."""
    facts = read_json(run / "data" / "data.json")
    roots = facts.get("sets") or {facts["name"]: facts["root"]}
    sources: dict[str, Source] = {}
    parts: list[list[Row]] = []
    for name, root in roots.items():
        folder = _set_folder(run, name, len(roots))
        saved = folder / "mapping.json"
        mapping = LabelMapping.from_json(read_json(saved)) if len(roots) == 1 or saved.exists() else None
        sources[name] = Source(name, Path(root), mapping)
        parts.append([replace(row, dataset=name) for row in load_splits(folder / "splits.csv", root=Path(root))])
    return sources, parts


def load_data(run: Path, options: TrainOptions, known: Known | None = None) -> Loaded:
    """The data of a run folder, from the cache; UserError when files changed since the run began, or are gone."""
    from ..data.batches import Dataset

    facts = read_json(run / "data" / "data.json")
    sources, parts = saved_sets(run)
    try:
        whole = join_caches(_open_caches(sources, parts, options))
    except OSError as error:
        place = run / "data" / "data.json"
        raise UserError(
            f"{error.filename}: cannot be found ({error.strerror}); put the data back, or name their folder in {place}"
        ) from None
    if facts.get("hash", whole.data_hash) != whole.data_hash:
        where = ", ".join(str(source.root) for source in sources.values())
        raise UserError(f"{where}: the images or masks changed since {run} began; start a new run")
    if "hash" not in facts:
        facts["hash"] = whole.data_hash
        write_json(run / "data" / "data.json", facts)
    rows = [row for part in parts for row in part]
    classes = next(source.mapping.classes for source in sources.values() if source.mapping)
    before = known.modalities if known else ()
    modalities = (*before, *sorted({row.modality for row in rows} - {*before}))
    marks = marks_of(list(sources.values()), rows, len(classes))
    return Loaded(Dataset(whole, rows, classes, modalities, marks), sources, facts)


def _open_caches(sources: Mapping[str, Source], parts: Sequence[list[Row]], options: TrainOptions) -> list[Cache]:
    with bar("decoding images") as progress:
        return [
            open_cache(
                part,
                source.mapping,
                size=parse_size(options.size),
                fit=options.fit,
                neighbours=options.neighbours,
                folder=options.cache or user_cache_path("segdistill", appauthor=False),
                threads=options.threads,
                on_progress=progress,
            )
            for source, part in zip(sources.values(), parts, strict=True)
        ]


def describe_sources(sources: Mapping[str, Source]) -> str:
    """What the mask values mean, of several data sets each under its name; for the report."""
    if len(sources) == 1:
        return "".join(source.mapping.describe() for source in sources.values() if source.mapping)
    shown = {name: source.mapping.describe() if source.mapping else "no masks" for name, source in sources.items()}
    return "\n".join(f"{name}\n  " + text.replace("\n", "\n  ") for name, text in shown.items())


def split_table(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Images, masks and patients per split, of several data sets each; for the terminal and the report."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    return [
        ({"data set": name} if len(datasets) > 1 else {})
        | {
            "split": split,
            "images": len(part),
            "labelled": sum(row.mask is not None for row in part),
            "patients": len({row.patient for row in part if row.patient}) or "–",
        }
        for name in datasets
        for split, part in _by_split([row for row in rows if row.dataset == name])
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
