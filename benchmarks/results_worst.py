"""The test images that even the best of some runs finds hardest; used by results_tables.py and results_figures.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

Entry = dict[str, Any]  # a file of benchmarks/results
ROWS = 8


def worst_table(runs: dict[str, list[Entry]]) -> str:
    """Markdown: name, share of the image that is object, Dice of each run, mean over its seeds."""
    means = {name: image_means(entries) for name, entries in runs.items()}
    dice, areas = {name: one for name, (one, _) in means.items()}, next(iter(means.values()))[1]
    best = {image: max(of_image[image] for of_image in dice.values()) for image in next(iter(dice.values()))}
    lines = [f"| | polyp, % | {' | '.join(dice)} |", "|---" * (2 + len(dice)) + "|"]
    for image in sorted(best, key=lambda image: best[image])[:ROWS]:
        cells = [f"{100 * areas[image]:.1f}", *(f"{of_image[image]:.3f}" for of_image in dice.values())]
        lines.append(f"| {Path(image).stem} | {' | '.join(cells)} |")
    return "\n".join(lines)


def image_means(runs: list[Entry]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each image its Dice, mean over these runs, and the share of it that is object."""
    dice = {name: statistics.mean(run["images"][name] for run in runs) for name in runs[0]["images"]}
    return dice, runs[0]["areas"]
