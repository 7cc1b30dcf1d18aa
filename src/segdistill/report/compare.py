"""`compare.md` and `compare.html`: what the difference between groups of runs is, and whether it can be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats import replacing
from ..metrics.paired import FEWEST, Difference, Verdict
from .page import page_template

COLUMNS = ("class", "score", "pairs", "baseline", "other", "difference [95 %]", "verdict")
WORDS: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "unclear": "no difference can be told",
    "equal": "no difference: every score is the same",
    "too few": "too few for a claim",
    "none": "nothing to compare",
}


@dataclass(frozen=True)
class Score:
    """A score that is compared."""

    name: str
    higher_is_better: bool
    digits: int
    point: float  # differences are told in multiples of it
    points: str  # their name


SCORES = (
    Score("Dice", True, 3, 0.01, "Dice points"),
    Score("HD95", False, 1, 1.0, ""),  # in its unit
    Score("NSD", True, 3, 0.01, "NSD points"),
    Score("false-positive rate", False, 3, 0.01, "percentage points"),
)


@dataclass(frozen=True)
class Line:
    """One score of one class."""

    label: str  # the class, or "mean of classes"
    score: Score
    unit: str  # of distances
    difference: Difference

    @property
    def title(self) -> str:
        """The score with its unit."""
        return f"{self.score.name} [{self.unit}]" if self.score.name == "HD95" else self.score.name

    @property
    def verdict(self) -> Verdict:
        """Of the other group."""
        return self.difference.verdict(higher_is_better=self.score.higher_is_better)

    @property
    def change(self) -> str:
        """The difference with its interval, as +0.021 [-0.003, +0.045]."""
        d = self.difference
        ends = f" [{_signed(d.low, self.score)}, {_signed(d.high, self.score)}]" if math.isfinite(d.low) else ""
        return _signed(d.mean, self.score) + ends

    @property
    def place(self) -> tuple[float, float, float]:
        """(low, mean, high) on a bar from 0 to 100 with no difference at 50, which all of the same scale share."""
        d, reach = self.difference, 20 if self.score.name == "HD95" else 0.2
        low, mean, high = (50 + 50 * max(-1.0, min(1.0, end / reach)) for end in (d.low, d.mean, d.high))
        return low, mean, high


@dataclass(frozen=True)
class Comparison:
    """A group of runs against the baseline; the first line is the one that the headline speaks of."""

    baseline: str
    other: str
    grouped_by: str  # "patient" or "image"
    lines: Sequence[Line]
    notes: Sequence[str]

    def words(self, line: Line) -> str:
        """The verdict in words, with what would be needed where nothing can be told."""
        d, text = line.difference, WORDS[line.verdict]
        if line.verdict == "unclear":
            points = f"{d.visible / line.score.point:.1f} {line.score.points or line.unit}"
            text += (
                f" (the interval includes 0; between these two, {_many(d.groups, self.grouped_by)}, about {points} "
                "are needed)"
            )
        elif line.verdict == "too few":
            text += f" ({_many(d.groups, self.grouped_by)}; at least {FEWEST} are needed)"
        return text

    @property
    def headline(self) -> str:
        """One sentence: what can be said of the Dice."""
        line = self.lines[0]
        which = line.score.name if line.label == "mean of classes" else f"{line.score.name} of {line.label}"
        return f"{self.other} against {self.baseline}, {which} {line.change}: {self.words(line)}."

    def cells(self, line: Line) -> tuple[str, ...]:
        """A row of the table in the order of COLUMNS."""
        d = line.difference
        pairs = f"{d.pairs}" if d.pairs == d.groups else f"{d.pairs} ({_many(d.groups, self.grouped_by)})"
        means = (_figure(d.baseline, line.score), _figure(d.other, line.score))
        return line.label, line.title, pairs, *means, line.change, self.words(line)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    name: str
    runs: Sequence[str]  # folders
    seeds: Sequence[int]  # of the runs; empty where unknown
    dice: Sequence[float]  # of each run: mean over its images whose reference is not empty

    @property
    def spread(self) -> str:
        """Mean of the runs' Dice and, from two runs on, the standard deviation over seeds."""
        n = len(self.dice)
        mean = sum(self.dice) / n
        deviation = math.sqrt(sum((value - mean) ** 2 for value in self.dice) / (n - 1)) if n > 1 else math.nan
        return _figure(mean, SCORES[0]) + (f" ± {deviation:.3f}" if n > 1 else "")


EXPLANATION = (
    "Difference: other minus baseline, in pairs: an image that both scored, once for each seed. Dice, HD95 and NSD are "
    "over images whose reference is not empty (a miss counts as Dice 0 and HD95 the diagonal), the false-positive rate "
    "over those whose reference is. Intervals are 95 % bootstraps over patients (images where patients are unknown) "
    "and, where there are several, over seeds; each holds by itself, so of twenty differences about one looks real by "
    "chance."
)


def markdown(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> str:
    """The comparison as a Markdown document."""
    parts = [
        "# Comparison of runs",
        *(f"- {_cell(comparison.headline)}" for comparison in comparisons),
        "",
        EXPLANATION,
    ]
    for c in comparisons:
        head = [name.replace("baseline", c.baseline).replace("other", c.other) for name in COLUMNS]
        parts += ["", f"## {_cell(c.other)} against {_cell(c.baseline)}", "", _row(head)]
        parts += ["|---|---|---:|---:|---:|---:|---|", *(_row(c.cells(line)) for line in c.lines), ""]
        parts += [f"- {_cell(note)}" for note in c.notes]
    parts += ["", "## Runs", "", _row(("group", "seed", "Dice of each run", "mean ± sd over seeds", "folders"))]
    parts += ["|---|---|---|---|---|", *(_row(run_cells(group)) for group in groups)]
    return "\n".join(parts) + "\n"


def run_cells(group: Group) -> tuple[str, ...]:
    """Name, seeds, Dice of each run, mean, folders."""
    seeds = ", ".join(map(str, group.seeds)) or "–"
    dice = ", ".join(_figure(value, SCORES[0]) for value in group.dice)
    return group.name, seeds, dice, group.spread, ", ".join(group.runs)


def write_comparison(folder: Path, groups: Sequence[Group], comparisons: Sequence[Comparison]) -> None:
    """Write `compare.md` and `compare.html`, each whole or not at all. The same scores give the same bytes."""
    html = page_template("compare.html.j2").render(
        groups=[(group, run_cells(group)) for group in groups], comparisons=comparisons, explanation=EXPLANATION
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("compare.md", markdown(groups, comparisons)), ("compare.html", html)):
        with replacing(folder / name) as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))


def _figure(value: float, score: Score) -> str:
    return f"{value:.{score.digits}f}" if math.isfinite(value) else "–"


def _signed(value: float, score: Score) -> str:
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.{score.digits}f}"
    return text[1:] if float(text) == 0 else text  # no +0.000 and no -0.000


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Text that stays text in Markdown."""
    for sign in ("\\", "|", "<", "*", "_", "`"):
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
