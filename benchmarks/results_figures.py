"""The figures of docs/results.md from benchmarks/results.

    python benchmarks/results_figures.py

Writes docs/figures: label_curve.png (Dice over the number of masks), cost.png (Dice and what a student costs) and
worst_cases.png (Dice of each test image over how much of it is object).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from results_tables import least_ms
from results_worst import image_means

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"
BUDGETS = (15, 60, 150, 600)
NAMES = {"supervised": "supervised U-Net", "trio": "supervised trio", "knowsam": "KnowSAM without SAM"}
PERCENT = (1, 2, 5, 10, 20, 50)
AT_60 = {"supervised": "supervised", "trio": "trio", "knowsam": "knowsam_without_sam"}  # of few_labels
STUDENTS = {  # of the figure of costs: campaign, row, the student beside its own
    "U-Net, all 600 masks": ("few_labels", "supervised_all_masks", ""),
    "KDAS, a teacher that knows more": ("compact", "kdas_strong_1600_kvasir_seg", ""),
    "PVTv2-B0, twice the iterations": ("compact", "control_3200_kvasir_seg", ""),
    "PVTv2-B0": ("compact", "control_1600_kvasir_seg", ""),
    "KnowSAM without SAM, its U-Net, 6,000": ("few_labels", "knowsam_without_sam_6000", "unet"),
    "KnowSAM without SAM, 6,000": ("few_labels", "knowsam_without_sam_6000", ""),
    "U-Net, 6,000": ("few_labels", "supervised_6000", ""),
    "trio, 6,000": ("few_labels", "trio_6000", ""),
    "UniMatch, 1,800": ("few_labels", "unimatch", ""),
    "KnowSAM without SAM, 1,800": ("few_labels", "knowsam_without_sam", ""),
    "KnowSAM, a SAM without weights, 1,800": ("few_labels", "knowsam", ""),
    "trio, 1,800": ("few_labels", "trio", ""),
    "U-Net, 1,800": ("few_labels", "supervised", ""),
    "Mean Teacher, 1,800": ("few_labels", "mean_teacher", ""),
    "BCP, 1,800": ("few_labels", "bcp", ""),
}
LONGEST = {"supervised": "supervised_6000", "trio": "trio_6000", "knowsam": "knowsam_without_sam_6000"}


def main() -> None:
    """Draw what is finished."""
    FIGURES.mkdir(exist_ok=True)
    for name, draw in {"label_curve": label_curve, "cost": cost, "worst_cases": worst_cases}.items():
        figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
        draw(axes)
        axes.set_ylabel("test Dice")
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
        figure.savefig(FIGURES / f"{name}.png", dpi=110, metadata={"Software": None})


def seeds(campaign: str, name: str) -> list[dict[str, Any]]:
    """The finished runs of a row."""
    paths = sorted((HERE / "results" / campaign).glob(f"{name}_s?.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def label_curve(axes: plt.Axes) -> None:
    """A line per method; a seed's own interval over images, of several seeds the least and the most."""
    for place, (key, label) in enumerate(NAMES.items()):
        points = list(_points(key))
        if points:
            x, y, low, high = zip(*points, strict=True)
            shifted = [value * 1.04 ** (place - 1) for value in x]
            axes.errorbar(shifted, y, [low, high], marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axes.minorticks_off()
    axes.set_xlabel("masks (of 600 training images)")


def _points(key: str) -> Iterator[tuple[int, float, float, float]]:
    """Masks, Dice, how far down and up."""
    for budget in BUDGETS:
        found = seeds("few_labels", AT_60[key]) if budget == 60 else seeds("label_curve", f"{key}_{budget}")
        dice = [entry["summary"]["mean"]["dice"] for entry in found]
        if dice:
            mean = statistics.mean(one["mean"] for one in dice)
            lows = [one["low"] for one in dice] if len(dice) == 1 else [one["mean"] for one in dice]
            highs = [one["high"] for one in dice] if len(dice) == 1 else lows
            yield budget, mean, mean - min(lows), max(highs) - mean


def cost(axes: plt.Axes) -> None:
    """A point per student: milliseconds in torch, Dice; the area is the parameters."""
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for label, (campaign, row, beside) in STUDENTS.items():
        runs = seeds(campaign, row)
        if beside:
            runs = [_beside(run, beside) for run in runs]
        if runs:
            ms, millions = least_ms(runs[0], seeds(campaign, "*")), runs[0]["parameters"] / 1e6
            axes.scatter(ms, mean_dice(runs), s=40 * millions, alpha=0.7, label=f"{label} ({millions:.1f} M)")
    axes.set_xlabel("ms per image (torch, one thread)")


def _beside(run: dict[str, Any], name: str) -> dict[str, Any]:
    """The run as if the student called so, which it ships beside its own, were its own."""
    student = run["summary"]["students"][name]
    mean = run["summary"]["mean"] | {"dice": student["dice"]}
    return run | {"parameters": student["parameters"], "summary": run["summary"] | {"mean": mean}}


def mean_dice(runs: list[dict[str, Any]]) -> float:
    """Over seeds."""
    return statistics.mean(run["summary"]["mean"]["dice"]["mean"] for run in runs)


def worst_cases(axes: plt.Axes) -> None:
    """Of each method, trained longest, the mean of an image's Dice over seeds."""
    for key, label in NAMES.items():
        dice, areas = image_means(seeds("few_labels", LONGEST[key]))
        axes.scatter([100 * areas[name] for name in dice], dice.values(), s=12, alpha=0.5, label=label)
    axes.set_xscale("log")
    axes.set_xticks(PERCENT, [str(tick) for tick in PERCENT])
    axes.minorticks_off()
    axes.set_xlabel("percent of the image that are polyp")


if __name__ == "__main__":
    main()
