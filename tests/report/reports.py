"""Reports made up for tests: with little in them, and with everything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from segdistill.metrics.paired import Difference
from segdistill.report.compare import SCORES, Comparison, Line
from segdistill.report.html import Example, ReportData
from segdistill.types import Remarks

METRICS = ("dice", "iou", "precision", "recall", "specificity", "hd95", "assd", "nsd")
AREA = 10_000  # pixels of every image


def statistic(mean: float | None, spread: float = 0.05) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "low": None, "high": None, "median": None, "n": 0}
    return {"mean": mean, "low": mean - spread, "high": mean + spread, "median": mean, "n": 6}


def block(dice: float | None) -> dict[str, Any]:
    scores = {name: statistic(dice) for name in METRICS}
    if dice is not None:
        scores |= {"hd95": statistic(40.0, spread=2.5), "assd": statistic(10.0, spread=0.5)}
    counts = {"images": 8, "both_empty": 2, "empty_reference": 3, "empty_prediction": 4}
    return scores | {"pooled_dice": dice, "dice_nonempty": statistic(dice), "false_positive_rate": 1 / 3} | counts


def summary(**classes: float | None) -> dict[str, Any]:
    return {
        "images": 8,
        "groups": 4,
        "grouped_by": "patient",
        "kind": "image",
        "unit": "mm",
        "tolerance": 2.0,
        "note": "Small set: careful.",
        "ece": None,
        "classes": {name: block(dice) for name, dice in classes.items()},
        "mean": block(next(iter(classes.values()))),
    }


def score(image: str, name: object, dice: float | None, patient: str = "", reference: int = 0) -> dict[str, Any]:
    """A row of scores; its reference has so many pixels."""
    counts = {"tp": 0, "fp": 0, "fn": reference, "tn": AREA - reference}
    known = {"image": image, "dataset": "kvasir", "patient": patient}
    return known | {"class": name, "dice": math.nan if dice is None else dice, "hd95": 12.0} | counts


def example(name: str, kind: str, *, shape: tuple[int, int] = (50, 80), classes: int = 2, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    reference, prediction = np.zeros((2, *shape), dtype=np.uint8)
    reference[10:30, 10:40], prediction[15:35, 20:50] = 1, classes - 1
    return Example(name, kind, "Dice 0.12, polyp", rng.integers(0, 256, (*shape, 3), np.uint8), reference, prediction)


def report(**changes: Any) -> ReportData:
    log: list[Mapping[str, object]] = []
    for i in range(1, 31):
        log.append({"stage": "main", "iteration": i, "loss": 2 / i, "lr": 0.01, "terms": {"seg": 1 / i, "kd": 1 / i}})
    log.append({"stage": "main", "iteration": 30, "validation": {"dice": 0.71, "polyp": 0.71}})
    data = ReportData(
        title="supervised on kvasir",
        command="segdistill train kvasir --labelled 60",
        facts={"Data hash": "abc123", "Seed": "0"},
        config="method: supervised\nseed: 0\n",
        classes=["background", "polyp"],
        colours=[(0, 0, 0), (255, 0, 0)],
        splits=[{"split": "train", "images": 1200, "labelled": 60, "patients": None}],
        mapping="0 -> background\n255 -> polyp",
        log=log,
        summary=summary(polyp=0.7126),
        scores=[score(f"{i}.png", 1, d) for i, d in enumerate((0.1, 0.4, 0.8, 0.9, math.nan, None))],
        examples=[example("b.png", "best"), example("w.png", "worst"), example("m.png", "median")],
        student={"Network": "unet", "File": "7.3 MB"},
        warnings=["4 test images are also in the training split"],
    )
    return replace(data, **changes)


def comparison(baseline: str = "supervised", other: str = "kd") -> Comparison:
    """Better in Dice; two lines."""
    found = Difference(0.5, 0.6, 0.1, 0.08, 0.12, pairs=60, groups=20, equal=False)
    lines = [Line("polyp", score, "px", found) for score in SCORES[:2]]
    return Comparison(baseline, other, "patient", lines, ["One training each."])


def calibrated() -> dict[str, Any]:
    """Of a summary: 800 pixels of which 90 % are right at .95, 200 right in half at .6."""
    bins = [{"confidence": 0.6, "accuracy": 0.5, "count": 200}, {"confidence": 0.95, "accuracy": 0.9, "count": 800}]
    return {"ece": 0.06, "calibration": bins}


def full_report(name: str, link: str) -> ReportData:
    """Everything that a report can hold, of three classes, its worst image of that name and place."""
    classes = ["background", "polyp", "a_class_of_a_very_long_name_without_spaces_" * 2]
    rng = np.random.default_rng(0)
    scores = [
        score(name if i == 0 else f"{i}.png", label, float(dice), f"patient_{i // 4}_{name}", 50 * (i + 1))
        for label in (1, 2)
        for i, dice in enumerate(np.sort(rng.random(24)))
    ]
    whole = summary(**dict.fromkeys(classes[1:], 0.7126)) | calibrated()
    whole["datasets"] = {f"set_{i}_{name}": summary(polyp=0.5) for i in range(2)}
    unsure = rng.integers(0, 256, (50, 80), np.uint8)
    shown = [
        replace(example(name if kind == "worst" else f"{kind}.png", kind, classes=3), unsure=unsure)
        for kind in ("worst", "median", "best")
    ]
    return report(
        title=f"KnowSAM on {name}",
        command=f"segdistill train /data/{name * 3} --labelled 60",
        facts={"data hash": "0123456789abcdef" * 4, "machine": "Linux x86_64"},
        config="method: supervised\ndata: " + name * 4 + "\n",
        classes=classes,
        colours=[(0, 0, 0), (255, 0, 0), (0, 120, 255)],
        summary=whole,
        scores=scores,
        examples=shown,
        links={name: link},
        baseline=comparison("supervised_" * 8, "kd (labelled 60, size 352)"),
        warnings=[f"4 test images are also in the training split ({name}, {name})"],
        remarks=Remarks(("SAM was 3 points better.",), (("pictures", rng.integers(0, 256, (40, 90, 3), np.uint8)),)),
    )
