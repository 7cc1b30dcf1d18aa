"""What the verbs show: one console, bars only where a person watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..metrics.polyp import POLYP_METRICS
from ..metrics.routing import describe_routing

console = Console(highlight=False)
ROWS = ("dice", "iou", "precision", "recall", "hd95", "assd", "nsd")


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, fed by calls of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show_scores(title: str, summary: Mapping[str, Any]) -> None:
    """The score table of a summary: mean and 95 % interval, a column per class."""
    blocks = dict(summary["classes"])
    if len(blocks) > 1:
        blocks["mean"] = summary["mean"]
    console.print(title, markup=False)  # as a table's title it would be broken to the table's width
    table = Table("score", *map(escape, blocks))
    for name in ROWS:
        unit = f" ({summary['unit']})" if name in ("hd95", "assd") else ""
        table.add_row(f"{name}{unit}", *(interval(block[name]) for block in blocks.values()))
    console.print(table)
    for kind in ("modalities", "datasets"):
        if kind in summary and not (kind == "datasets" and summary[kind] == summary.get("modalities")):
            console.print(_by_group(kind, summary))
    for sentence in describe_routing(summary["routing"], summary["kind"]) if "routing" in summary else ():
        console.print(sentence, markup=False)
    if "polyp" in summary:
        console.print(_polyp(summary))
    n, groups = summary["images"], summary["groups"]
    over = f", 95 % intervals over {groups} {summary['grouped_by']}s" if groups > 1 else ""
    counted = f"{n} {summary['kind']}{'' if n == 1 else 's'}{over}."
    console.print(f"{counted} {summary.get('note', '')}", markup=False)


def _by_group(kind: str, summary: Mapping[str, Any]) -> Table:
    """A line per modality or data set; of modalities also their mean, each counting once."""
    blocks = {name: (str(part["images"]), part["mean"]) for name, part in summary[kind].items()}
    if kind == "modalities":
        blocks["mean of modalities"] = ("", summary["macro"])
    table = Table(kind.replace("datasets", "data sets"), f"{summary['kind']}s", "dice", "iou", "nsd")
    for name, (images, block) in blocks.items():
        table.add_row(Text(name or "unknown"), images, *(interval(block[score]) for score in ("dice", "iou", "nsd")))
    return table


def _polyp(summary: Mapping[str, Any]) -> Table:
    """The polyp literature's scores of each data set; their intervals are in summary.json."""
    table = Table(title="as polyp papers score", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("data set", overflow="fold")
    for name in ("images", *POLYP_METRICS.values()):
        table.add_column(name.replace(" ", "\n"), no_wrap=True)
    for name, part in (summary.get("datasets", {}) | {"all": summary}).items():
        values = [part["polyp"][score] for score in POLYP_METRICS]
        means = ("–" if value["mean"] is None else f"{value['mean']:.3f}" for value in values)
        table.add_row(Text(name), str(values[0]["n"]), *means)
    return table


def interval(statistic: Mapping[str, Any]) -> str:
    """Mean and interval, as 0.712 [0.650, 0.770]; a dash where there is none."""
    if statistic["mean"] is None:
        return "–"
    digits = 3 if abs(statistic["mean"]) <= 1 else 1
    if statistic["low"] is None:
        return f"{statistic['mean']:.{digits}f}"
    return f"{statistic['mean']:.{digits}f} [{statistic['low']:.{digits}f}, {statistic['high']:.{digits}f}]"
