"""A table of results on several data sets: Dice of each, their mean, and its difference to a baseline.

Used by results_tables.py. Runs that share a `row:` in the campaign's plan, a model for each set, say, are one row.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

Entry = dict[str, Any]  # a file of benchmarks/results
DRAWS = 5000
BEFORE = ("", "seeds", "mean of the sets", "difference, 95 % interval")
AFTER = ("routing", "parameters, M", "ms", "minutes")


def sets_table(rows: dict[str, str], found: dict[str, dict[int, Entry]], baseline: str) -> str:
    """Markdown, from runs by name and seed; a row whose runs are not all finished says so."""
    together: dict[str, list[dict[int, Entry]]] = {}
    for name, row in rows.items():
        together.setdefault(row, []).append(found[name])
    joined = {row: joint(runs) for row, runs in together.items()}
    sets = sorted({name for entries in joined.values() for one in entries.values() for name in one["sets"]})
    titles = [*BEFORE, *sets, *AFTER]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, entries in joined.items():
        cells = written(entries, sets, joined[baseline], name == baseline) if entries else ["not run"]
        lines.append("| " + " | ".join([name, *cells, *[""] * (len(titles) - 1 - len(cells))]) + " |")
    return "\n".join(lines)


def joint(runs: list[dict[int, Entry]]) -> dict[int, Entry]:
    """By seed, over the runs of a row: images by set, and what the runs cost together."""
    seeds = set.intersection(*(set(run) for run in runs))
    return {
        seed: {"sets": by_set([run[seed] for run in runs]), "runs": [run[seed] for run in runs]}
        for seed in sorted(seeds)
    }


def by_set(runs: list[Entry]) -> dict[str, dict[str, float]]:
    """Dice by data set and image."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        for name, dice in run["images"].items():
            found.setdefault(name.split("/")[0], {})[name] = dice
    return found


def written(entries: dict[int, Entry], sets: list[str], baseline: dict[int, Entry], same: bool) -> list[str]:
    """The cells of a row after its name."""
    means = {name: statistics.mean(mean_of(one["sets"][name]) for one in entries.values()) for name in sets}
    runs = next(iter(entries.values()))["runs"]
    routing = [run["summary"]["routing"]["accuracy"] for run in runs if "routing" in run["summary"]]
    seconds = [sum(run["summary"]["run"]["training seconds"] for run in one["runs"]) for one in entries.values()]
    return [
        ", ".join(map(str, entries)),
        f"{statistics.mean(means.values()):.3f}",
        "" if same else gap(entries, baseline),
        *(f"{means[name]:.3f}" for name in sets),
        f"{routing[0]:.3f}" if routing else "",
        f"{sum(run['parameters'] for run in runs) / 1e6:.1f}",
        f"{statistics.median(run['summary']['ms_per_image'] for run in runs):.0f}",
        f"{statistics.mean(seconds) / 60:.0f}",
    ]


def mean_of(dice: dict[str, float]) -> float:
    return statistics.mean(dice.values())


def gap(entries: dict[int, Entry], baseline: dict[int, Entry]) -> str:
    """Mean over the sets of the paired differences, images drawn within each set; of one seed."""
    seeds = [seed for seed in entries if seed in baseline]
    if not seeds:
        return "no seed in common"
    if len(seeds) > 1:
        raise ValueError(
            f"seeds {seeds}: this interval holds no spread of seeds yet; draw them as results_tables.py does"
        )
    ours, theirs = entries[seeds[0]]["sets"], baseline[seeds[0]]["sets"]
    rng = np.random.default_rng(0)
    drawn, means = [], []
    for name, dice in theirs.items():
        differences = np.array([ours[name][image] - value for image, value in dice.items()])
        drawn.append(rng.choice(differences, (DRAWS, len(differences))).mean(1))
        means.append(differences.mean())
    low, high = np.quantile(np.mean(drawn, 0), [0.025, 0.975])
    return f"{np.mean(means):+.3f} [{low:+.3f}, {high:+.3f}]"
