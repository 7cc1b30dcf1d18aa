"""The tables of docs/results.md from benchmarks/results: rewrites what stands between the marks.

    python benchmarks/results_tables.py [--check]

    <!-- table few_labels, baseline trio, students of trio and knowsam -->
    (made here)
    <!-- end -->

A row per run of the campaign's plan (`on SET` after its name: of those on this data set), over its finished seeds:
best validation Dice, test Dice (least to most over seeds; of one seed its 95 % interval over images), the difference
to the baseline (or to the runs that the plan names as `against`) on the same images and seeds with its 95 % interval
(images and seeds drawn), HD95, Dice of the last weights instead of the best on validation, parameters, ms per image
in torch (the least of all runs of the campaign that have this network and size on one thread; none beside a GPU where
others had none, since its host has other cores), minutes of training. A row's GPU, if any, stands after its name;
below, data hashes and versions. `sets` in place of `table`: the table of results_sets.py. `<!-- worst CAMPAIGN: NAME,
NAME -->`: of results_worst.py. `<!-- seeds CAMPAIGN: NAME to CONTROL, CONTROL -->`: of results_seeds.py. `<!-- hidden
NAME -->`: a file of hidden_dice.py. `<!-- speed -->`: of speed_aims.py.
`--check` changes nothing and exits with 1 where the document is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from results_seeds import seeds_table
from results_sets import sets_table
from results_worst import worst_table
from speed_aims import speed_table

from segdistill.metrics.paired import Difference, paired_differences

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "results.md"
TABLE = r"<!-- (table|sets) (\w+)(?: on (\w+))?, baseline (\w+)(?:, students of ([\w ]+))? -->\n"
MARKED = re.compile(rf"({TABLE}).*?(<!-- end -->)", re.DOTALL)
WORST = re.compile(r"(<!-- worst (\w+): ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SEEDS = re.compile(r"(<!-- seeds (\w+): (\w+) to ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HIDDEN = re.compile(r"(<!-- hidden (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SPEED = re.compile(r"(<!-- speed -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = [
    "",
    "seeds",
    "validation",
    "test Dice",
    "difference, 95 % interval",
    "HD95, px",
    "last weights",
    "parameters, M",
    "ms",
    "minutes",
]
HEAD = "| " + " | ".join(TITLES) + " |\n" + "|---" * len(TITLES) + "|"
Entry = dict[str, Any]  # a file of benchmarks/results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    given = parser.parse_args()
    old = DOCUMENT.read_text(encoding="utf-8")
    new = MARKED.sub(lambda found: found[1] + made(*found.group(2, 3, 4, 5, 6)) + "\n" + found[7], old)
    new = WORST.sub(lambda found: found[1] + worst(found[2], found[3].split(", ")) + "\n" + found[4], new)
    new = SEEDS.sub(lambda found: found[1] + seeds(found[2], found[3], found[4].split(", ")) + "\n" + found[5], new)
    new = HIDDEN.sub(lambda found: found[1] + hidden(found[2]) + found[3], new)
    new = SPEED.sub(lambda found: found[1] + speed_table() + "\n" + found[2], new)
    if given.check:
        return int(new != old)
    DOCUMENT.write_text(new, encoding="utf-8")
    return 0


def made(kind: str, campaign: str, data: str | None, baseline: str, wholes: str | None) -> str:
    """The table that a mark asks for."""
    plan = yaml.safe_load((HERE / "campaigns" / f"{campaign}.yaml").read_text(encoding="utf-8"))["runs"]
    found = {run["name"]: finished(HERE / "results" / campaign, run) for run in plan if data in (None, run["data"])}
    if kind == "sets":
        rows = {run["name"]: run.get("row", run["name"]) for run in plan}
        return sets_table(rows, found, baseline) + sources(campaign, found)
    against = {run["name"]: listed(run.get("against", baseline)) for run in plan}
    return table(found, against, baseline, (wholes or "").split(" and ")) + sources(campaign, found)


def listed(names: str | list[str]) -> list[str]:
    """One name, or several."""
    return [names] if isinstance(names, str) else names


def sources(campaign: str, found: dict[str, dict[int, Entry]]) -> str:
    """A line that says which files, data and versions the table is made of."""
    entries = [entry for by_seed in found.values() for entry in by_seed.values()]
    if not entries:
        return ""
    data = {" + ".join(named(entry)): entry["data hash"][:12] for entry in entries}
    hashes = ", ".join(f"{name} {value}" for name, value in sorted(data.items()))
    torch = " and ".join(sorted({entry["versions"]["torch"] for entry in entries}))
    return f"\n\nSettings and images: benchmarks/results/{campaign}. Data hashes: {hashes}. torch {torch}."


def named(entry: Entry) -> list[str]:
    """The data sets of a run."""
    return [entry["data"]] if isinstance(entry["data"], str) else entry["data"]


def table(found: dict[str, dict[int, Entry]], against: dict[str, list[str]], baseline: str, wholes: list[str]) -> str:
    """Markdown; `against` names each run's controls; of the runs named `wholes` also what other students reach."""
    lines, every = [HEAD], [entry for entries in found.values() for entry in entries.values()]
    for name, entries in found.items():
        ms = least_ms(next(iter(entries.values())), every) if entries else 0.0
        controls = [to for to in against[name] if to != name and (found[to] or to == baseline)]
        gaps = [gap(entries, found[to]) + (f" to {to}" if to != baseline else "") for to in controls]
        lines += [row(name, entries, "; ".join(gaps), ms), *(parts(entries) if name in wholes else [])]
    return "\n".join(lines)


def least_ms(entry: Entry, others: list[Entry]) -> float:
    """Milliseconds per image of this network at this size on one thread: of the least disturbed run that has it.

    NaN where only runs beside a GPU have it and others have none: those hosts' cores are not to be compared.
    """

    def network(one: Entry) -> tuple[Any, ...]:
        return one["parameters"], one["config"]["size"], one["config"]["threads"]

    wanted = entry["parameters"], entry["config"]["size"], 1
    mixed = len({bool(gpu_of(one)) for one in others}) > 1
    same = [one for one in others if network(one) == wanted and not (mixed and gpu_of(one))]
    return min((float(one["summary"]["ms_per_image"]) for one in same), default=math.nan)


def gpu_of(entry: Entry) -> str:
    """The GPU that a run trained on, "H200", or ""."""
    found: list[str] = re.findall(r"NVIDIA (.+)$", entry.get("machine", ""))
    return found[0] if found else ""


def worst(campaign: str, names: list[str]) -> str:
    """The table of results_worst.py."""
    found = chosen(campaign, names)
    return worst_table({name: [*found[name].values()] for name in names})


def seeds(campaign: str, name: str, controls: list[str]) -> str:
    """The table of results_seeds.py."""
    found = chosen(campaign, [name, *controls])
    return seeds_table({f"to {control}": (found[name], found[control]) for control in controls}, gap)


def chosen(campaign: str, names: list[str]) -> dict[str, dict[int, Entry]]:
    """Finished runs by name and seed."""
    plan = yaml.safe_load((HERE / "campaigns" / f"{campaign}.yaml").read_text(encoding="utf-8"))["runs"]
    return {run["name"]: finished(HERE / "results" / campaign, run) for run in plan if run["name"] in names}


def hidden(name: str) -> str:
    """What hidden_dice.py wrote."""
    return (HERE / "results" / "hidden" / f"{name}.md").read_text(encoding="utf-8")


def finished(results: Path, run: dict[str, Any]) -> dict[int, Entry]:
    """By seed."""
    paths = {seed: results / f"{run['name']}_s{seed}.json" for seed in run["seeds"]}
    return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in paths.items() if path.exists()}


def row(name: str, entries: dict[int, Entry], gaps: str, ms: float) -> str:
    """`gaps` are the differences to its controls, in words."""
    if not entries:
        return f"| {name} | not run |" + " |" * (len(TITLES) - 2)
    runs = list(entries.values())
    summaries = [entry["summary"] for entry in runs]
    dice = [summary["mean"]["dice"] for summary in summaries]
    means = [one["mean"] for one in dice]
    ends = (dice[0]["low"], dice[0]["high"]) if len(dice) == 1 else (min(means), max(means))
    spread = "[{:.3f}, {:.3f}]" if len(dice) == 1 else "({:.3f} to {:.3f})"
    cells = [
        ", ".join([name, *sorted({gpu_of(entry) for entry in runs} - {""})]),
        ", ".join(map(str, entries)),
        f"{statistics.mean(summary['run']['best validation Dice'] for summary in summaries):.3f}",
        f"{statistics.mean(means):.3f} " + spread.format(*ends),
        gaps,
        f"{statistics.mean(summary['mean']['hd95']['mean'] for summary in summaries):.1f}",
        f"{statistics.mean(entry['last'] for entry in runs):.3f}",
        f"{runs[0]['parameters'] / 1e6:.1f}",
        "" if math.isnan(ms) else f"{ms:.0f}",
        f"{statistics.mean(summary['run']['training seconds'] for summary in summaries) / 60:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def parts(entries: dict[int, Entry]) -> list[str]:
    """A row per student that a run ships beside its own."""
    students = [entry["summary"]["students"] for entry in entries.values()]
    lines = []
    for name in students[0] if students else ():
        means = [each[name]["dice"]["mean"] for each in students]
        hd95 = statistics.mean(each[name]["hd95"]["mean"] for each in students)
        spread = f"{statistics.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})"
        size = f"{students[0][name]['parameters'] / 1e6:.1f}"
        lines.append(
            f"| – its {name} alone | {', '.join(map(str, entries))} | | {spread} | | {hd95:.1f} | | {size} | | |"
        )
    return lines


def gap(entries: dict[int, Entry], baseline: dict[int, Entry]) -> str:
    """In the seeds and images that both have."""
    seeds = [seed for seed in entries if seed in baseline]
    if not seeds:
        return "no seed in common"
    found = difference([baseline[s]["images"] for s in seeds], [entries[s]["images"] for s in seeds])
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Difference:
    """Paired by seed (a list's entry) and image."""
    rows = [
        (s, name, one[name], two[name]) for s, (one, two) in enumerate(zip(ours, theirs, strict=True)) for name in one
    ]
    order = {name: g for g, name in enumerate(dict.fromkeys(name for _, name, _, _ in rows))}
    first, second = (np.array([[row[k]] for row in rows]) for k in (2, 3))
    seeds, groups = np.array([row[0] for row in rows]), np.array([order[row[1]] for row in rows])
    return paired_differences(first, second, seed_of=seeds, group=groups)[0]


if __name__ == "__main__":
    sys.exit(main())
