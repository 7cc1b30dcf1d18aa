"""The parts of a report that say where the student fails: the worst cases, by size, by patient; and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics.breakdown import Patient, SizeThird, by_patient, by_size, reference_share
from .diagrams import confidence_chart, reliability_chart, size_chart
from .figures import Panel, number

MOST = {"image": 10, "volume": 50}  # listed one by one, the worst first
MOST_PATIENTS = 50

Row = Mapping[str, Any]


def worst_cases(scores: Sequence[Row], classes: Sequence[str]) -> list[tuple[str, dict[str, Row]]]:
    """(name as shown, its row of each class) of all images or volumes, the worst mean Dice first, without one last."""
    table: dict[str, dict[str, Row]] = {}
    for row in scores:
        name = row["class"] if row["class"] in classes else classes[row["class"]]
        table.setdefault(row.get("shown", row["image"]), {})[name] = row
    means = {shown: _mean_dice(rows.values()) for shown, rows in table.items()}
    return [(shown, table[shown]) for shown in sorted(table, key=lambda one: means[one])]


def _mean_dice(rows: Iterable[Row]) -> float:
    values = [value for row in rows if not np.isnan(value := number(row["dice"]))]
    return float(np.mean(values)) if values else 2.0  # nothing to find, nothing found


def sizes(rows_of: Mapping[str, Sequence[Row]], kind: str) -> Iterator[tuple[str, list[SizeThird], Panel]]:
    """(class, thirds, chart) of each class that has enough references; `rows_of` are the classes' rows."""
    for name, rows in rows_of.items():
        thirds = by_size(rows)
        if thirds:
            shown = [row for row in rows if row["tp"] + row["fn"]]
            chart = size_chart([reference_share(row) for row in shown], [row["dice"] for row in shown], thirds, kind)
            yield name, thirds, Panel(name, "", chart)


def patients(scores: Sequence[Row]) -> dict[str, Any]:
    """The table of patients and the mean over them; empty where they say nothing that the images do not."""
    table, mean = by_patient([{"shown": row["image"], **row} for row in scores])
    several = len({one.dataset for one in table}) > 1

    def named(one: Patient) -> str:
        return f"{one.dataset}: {one.name}" if several else one.name

    lines = [(named(one), one) for one in table]
    return {"lines": lines[:MOST_PATIENTS], "hidden": len(lines[MOST_PATIENTS:]), "mean": mean} if table else {}


def calibration(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Charts and a sentence of how far the student's probabilities are to be believed; empty where unknown."""
    table = summary.get("calibration")
    if not table:
        return {}
    pixels = sum(row["count"] for row in table)
    more = sum(row["count"] * (row["confidence"] - row["accuracy"]) for row in table) / pixels
    word = "more" if more > 0 else "less"
    panels = [
        Panel("Is it right as often as it says?", f"ECE {summary['ece']:.3f}", reliability_chart(table)),
        Panel("How sure it is", f"{pixels:,} pixels", confidence_chart(table)),
    ]
    return {"panels": panels, "sentence": f"Over all pixels the student is {abs(more):.3f} {word} sure than right."}
