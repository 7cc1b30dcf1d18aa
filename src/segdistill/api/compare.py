"""compare: groups of runs against a baseline, paired by seed and image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..metrics.paired import paired_differences
from ..metrics.table import grouping
from ..report.compare import COLUMNS, SCORES, Comparison, Group, Line, write_comparison
from ..types import UserError
from .scored import Cell, Key, Run, by_stem, read_run
from .terminal import console

FEW_SEEDS = 5


def compare(runs: Sequence[Path | str], out: Path | str | None = None) -> list[Comparison]:
    """Compare groups of runs with the group of the first one, on the images that both scored.

    Args:
        runs: Run folders and folders that evaluate wrote; runs that differ only in their seed form a group.
        out: Folder for compare.md and compare.html.

    Returns:
        A comparison for each group but the first.

    Raises:
        UserError: Runs that cannot be read or cannot be paired.
    """
    read = _alike([read_run(Path(run)) for run in runs])
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in read:
        groups.setdefault(run.group, []).append(run)
    _check(read, list(groups.values()))
    names = _names(list(groups.values()))
    baseline, *others = zip(names, groups.values(), strict=True)
    comparisons = [_compare(*baseline, *other) for other in others]
    table = [_group(name, members) for name, members in zip(names, groups.values(), strict=True)]
    for comparison in comparisons:
        _show(comparison)
    if out:
        write_comparison(Path(out), table, comparisons)
        console.print(f"report: {Path(out) / 'compare.html'}", markup=False)
    return comparisons


def against(baseline: Run, run: Run) -> Comparison:
    """What a run changes against another one; UserError where they cannot be compared."""
    groups = [[baseline], [run]]
    _check([baseline, run], groups)
    names = _names(groups)
    return _compare(names[0], groups[0], names[1], groups[1])


def _alike(runs: Sequence[Run]) -> list[Run]:
    """The runs, those whose --split_seed is their --seed as if it had not been given: they draw the same.

    But where seeds share one run's splits that run belongs to them.
    """

    def family(run: Run) -> Run:
        return replace(run, settings={key: value for key, value in run.settings.items() if key != "split_seed"})

    def shared(run: Run) -> bool:
        return any(
            other.seed != run.seed
            and other.settings.get("split_seed") == run.settings["split_seed"]
            and family(other).group == family(run).group
            for other in runs
        )

    return [
        replace(run, settings={**run.settings, "split_seed": "None"})
        if run.seed is not None and run.settings.get("split_seed") == str(run.seed) and not shared(run)
        else run
        for run in runs
    ]


def _check(runs: Sequence[Run], groups: Sequence[Sequence[Run]]) -> None:
    """Refuse what has no meaning as a comparison."""
    for run in runs:
        if not run.cells:
            raise UserError(f"{run.folder}: scores.csv holds no image; score the run again with evaluate")
    for members in groups:
        seen: dict[int | None, Path] = {}
        for run in members:
            if run.seed in seen:
                raise UserError(
                    f"{seen[run.seed]} and {run.folder}: the same method, settings and seed ({run.seed}); leave one "
                    "out, or score both with evaluate --out and compare those folders"
                )
            seen[run.seed] = run.folder
    if len(groups) < 2:
        raise UserError(
            f"{runs[0].folder}: one group of {len(runs)} (same method and settings but for the seed) and nothing to "
            "compare it with; give a run of another method or setting too"
        )
    for what in ("unit", "tolerance"):
        found = sorted({str(value) for run in runs if (value := getattr(run, what)) is not None})
        if len(found) > 1:
            raise UserError(
                f"the runs are scored with {what} {' and '.join(found)}; score them alike with evaluate --out"
            )


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The method with the settings in which groups of that method differ; of other tools' masks the folder."""
    names = []
    for first, *_ in groups:
        rivals = [g[0] for g in groups if g[0].seed is not None and g[0].method == first.method]
        differ = [k for k, v in first.settings.items() if any(rival.settings.get(k) != v for rival in rivals)]
        listed = ", ".join(f"{key} {first.settings[key]}" for key in differ)
        name = first.folder.resolve().name if first.seed is None else first.method + (f" ({listed})" if listed else "")
        names.append(name)
    return [f"{n} ({g[0].folder.as_posix()})" if names.count(n) > 1 else n for n, g in zip(names, groups, strict=True)]


def _compare(baseline: str, ours: Sequence[Run], other: str, theirs: Sequence[Run]) -> Comparison:
    pairs, notes = _pair_runs(baseline, ours, other, theirs)
    rows: list[tuple[int, Key, Cell, Cell]] = []  # seed, key by the baseline's name, both cells
    for s, (first, second) in enumerate(pairs):
        matched, by_name = _match(first, second)
        rows += [(s, key, a, b) for key, a, b in matched]
        notes += _left_out(first, second, len({key[:2] for key, _, _ in matched}), by_name)
    lines, grouped_by = _lines(rows, pairs[0][0].unit)
    unknown = len({key[:2] for _, key, a, b in rows if not (a.patient or b.patient)})
    if unknown and grouped_by == "image":
        notes.append("Patients are unknown: intervals are over images, too narrow if a patient has several of them.")
    elif unknown:
        notes.append(f"The patient of {unknown} images is unknown: each counts as a patient of its own.")
    if not any(line.score == SCORES[-1] for line in lines):
        notes.append("No image has an empty reference: there is no false-positive rate to compare.")
    if any(run.scored not in ("", "test") for pair in pairs for run in pair):
        notes.append("Not all scores are of test images: what a student learnt from or was chosen by flatters it.")
    return Comparison(baseline, other, grouped_by, lines, list(dict.fromkeys(notes)))


def _pair_runs(
    baseline: str, ours: Sequence[Run], other: str, theirs: Sequence[Run]
) -> tuple[list[tuple[Run, Run]], list[str]]:
    """Runs of the same seed, which mostly have the same splits; a folder without a seed goes with every run."""
    if ours[0].seed is None or theirs[0].seed is None:
        pairs = [(first, second) for first in ours for second in theirs]
        unknown = [name for name, group in ((baseline, ours), (other, theirs)) if group[0].seed is None]
        notes = [f"The seed of {' and '.join(unknown)} is unknown: its training noise is not in the interval."]
    else:
        by_seed = {run.seed: run for run in theirs}
        pairs = [(run, by_seed[run.seed]) for run in ours if run.seed in by_seed]
        if not pairs:
            raise UserError(
                f"{baseline} has seed {_seeds(ours)}, {other} has {_seeds(theirs)}: runs are paired by seed, as each "
                "draws its own splits; train one of them with a seed of the other"
            )
        notes = [f"Paired within seed{'s' * (len(pairs) > 1)} {_seeds([first for first, _ in pairs])}."]
        notes += [
            f"Seed {a.seed}: the splits are drawn by seed {a.drawn_by} in the baseline and by {b.drawn_by} in the "
            "other, so they learnt from other images; only those that both tested are compared."
            for a, b in pairs
            if a.drawn_by != b.drawn_by
        ]
        alone = [run for run in (*ours, *theirs) if run.seed not in {first.seed for first, _ in pairs}]
        if alone:
            notes.append(
                f"Left out, for the other group lacks the seed: {', '.join(str(run.folder) for run in alone)}."
            )
    if len(pairs) == 1:
        notes.append("One training each: what training again with another seed would change is not in the interval.")
    elif len(pairs) < FEW_SEEDS:
        notes.append(
            f"With {len(pairs)} seeds the interval can be too narrow: where training noise outweighs that of images, "
            "three seeds held the truth in 76 % of simulations, not in 95 %; five in 85 %."
        )
    return pairs, notes


def _match(first: Run, second: Run) -> tuple[list[tuple[Key, Cell, Cell]], bool]:
    """Cells of the same dataset, image and class; failing any, of the same file name. The reference must be one."""
    common = [(key, cell, second.cells[key]) for key, cell in first.cells.items() if key in second.cells]
    by_name = not common
    if by_name:
        ours, theirs = by_stem(first), by_stem(second)
        common = [(ours[k], first.cells[ours[k]], second.cells[theirs[k]]) for k in ours if k in theirs]
    if not common:
        raise UserError(
            f"{first.folder} and {second.folder}: no image and class in common; score both on the same images"
        )
    differ = [key[1] for key, a, b in common if a.reference != b.reference]
    if differ:
        raise UserError(
            f"{first.folder} and {second.folder}: other reference masks for {len(differ)} of {len(common)} images and "
            f"classes in common ({differ[0]}); score both on the same masks"
        )
    return common, by_name


def _left_out(first: Run, second: Run, common: int, by_name: bool) -> Iterator[str]:
    if by_name:
        yield "Images are matched by file name alone: data set or folder are named differently."
    totals = [len({key[:2] for key in run.cells}) for run in (first, second)]
    if totals != [common, common]:
        seed = "" if first.seed is None else f"seed {first.seed}: "
        yield f"{seed}{common} images are in common, of {totals[0]} of the baseline and {totals[1]} of the other."


def _lines(rows: Sequence[tuple[int, Key, Cell, Cell]], unit: str) -> tuple[list[Line], str]:
    """Lines of the table, and what the bootstrap draws: "patient" or "image"."""
    classes = list(dict.fromkeys(key[2] for _, key, _, _ in rows))
    images: dict[tuple[int, str, str], int] = {}
    for s, key, _, _ in rows:
        images.setdefault((s, *key[:2]), len(images))
    table = np.full((2, len(images), len(classes), len(SCORES)), np.nan)  # (side, N, K, M)
    patients = [""] * len(images)
    for s, key, *cells in rows:
        at = images[s, key[0], key[1]]
        for side, cell in enumerate(cells):
            table[side, at, classes.index(key[2])] = cell.scores
            patients[at] = patients[at] or cell.patient
    group, by_patient = grouping([(key[1], p, key[2]) for key, p in zip(images, patients, strict=True)])
    labels = classes
    if len(classes) > 1:
        labels, table = ["mean of classes", *classes], np.concatenate([_mean(table), table], axis=2)
    differences = paired_differences(
        *table.reshape(2, len(images), -1),
        seed_of=np.array([key[0] for key in images]),
        group=group,
    )
    kinds = [(label, score) for label in labels for score in SCORES]
    lines = [Line(label, score, unit, d) for (label, score), d in zip(kinds, differences, strict=True)]
    lines = [line for line in lines if line.difference.pairs or line is lines[0]]
    return lines, "patient" if by_patient else "image"


def _mean(table: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Over the classes (axis 2, kept), without NaN; NaN where there is nothing else."""
    n = (~np.isnan(table)).sum(axis=2, keepdims=True)
    return np.where(n > 0, np.nansum(table, axis=2, keepdims=True) / np.maximum(n, 1), np.nan)


def _group(name: str, members: Sequence[Run]) -> Group:
    dice = []
    for run in members:
        values: dict[tuple[str, str], list[float]] = {}
        for (dataset, image, _), cell in run.cells.items():
            if not math.isnan(cell.scores[0]):
                values.setdefault((dataset, image), []).append(cell.scores[0])
        dice.append(float(np.mean([np.mean(each) for each in values.values()])) if values else math.nan)
    seeds = [run.seed for run in members if run.seed is not None]
    return Group(name, [run.folder.as_posix() for run in members], seeds, dice)


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.seed) for run in runs)


def _show(comparison: Comparison) -> None:
    title = f"{comparison.other} against {comparison.baseline}"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(escape(name), no_wrap=name.startswith(("difference", "class")), overflow="fold")
    for line in comparison.lines:
        label, score, images, *middle, _ = comparison.cells(line)  # short, for 80 columns
        table.add_row(*map(escape, (label, score, images.partition(" (")[0], *middle, line.verdict)))
    console.print(table)
    for note in comparison.notes:
        console.print(f"- {note}", markup=False)
    console.print(comparison.headline, markup=False, style="bold")
