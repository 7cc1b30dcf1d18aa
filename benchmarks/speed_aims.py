"""Every speed aim of the methods in one sitting, the machine's limits before and after: some 20 minutes, quiet machine.

    python benchmarks/speed_aims.py ../shared/data/kvasir_seg

Runs the benchmarks below one after the other and keeps what each prints in benchmarks/results/speed/NAME.txt, from
which results_tables.py makes the table of docs/results.md. It always starts anew: figures of one table are of one run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed"
LIMITS = "import torch; torch.set_num_threads(2); from knowsam_step import limits; limits()"


class Aim(NamedTuple):
    """A figure that a benchmark prints, and what was hoped for."""

    what: str
    pattern: str  # its one group is the figure
    hoped: float
    unit: str
    more: bool = False  # is better


STEP = r"\| {} \| {} \| {} \| ([\d.]+)"
PLANS: dict[str, tuple[list[str], list[Aim]]] = {
    "knowsam_step": (
        ["--threads", "2", "--repeats", "2"],
        [
            Aim("KnowSAM, a step before mixing, bf16", STEP.format("sam", "bf16", "before mixing"), 2.3, "s"),
            Aim("the same, fp32", STEP.format("sam", "fp32", "before mixing"), 2.3, "s"),
            Aim("KnowSAM, a step with mixing, bf16", STEP.format("sam", "bf16", "with mixing"), 2.8, "s"),
            Aim("the same, fp32", STEP.format("sam", "fp32", "with mixing"), 2.8, "s"),
            Aim("one window, before mixing, bf16", STEP.format("whole", "bf16", "before mixing"), 1.7, "s"),
            Aim("one window, with mixing, bf16", STEP.format("whole", "bf16", "with mixing"), 2.1, "s"),
            Aim("its peak with mixing, bf16", r"\| sam \| bf16 \| with mixing \|.*\| ([\d.]+) \|\n", 3.0, "GB"),
        ],
    ),
    "kdas_step": (
        ["--threads", "2", "--repeats", "1"],
        [
            Aim("KDAS, an iteration, bf16", r"\| student \| bf16 \| ([\d.]+)", 1.8, "s"),
            Aim("the same, fp32", r"\| student \| fp32 \| ([\d.]+)", 1.8, "s"),
            Aim("its peak, bf16", r"\| student \| bf16 \|.*\| ([\d.]+) \|\n", 2.5, "GB"),
        ],
    ),
    "esp_step": (
        ["--threads", "2", "--rows", "2", "--repeats", "1"],
        [
            Aim("ESP-MedSAM, S2 with embeddings kept, fp32", r"\| fp32 \|.*\| ([\d.]+) \|\n", 5, "times", more=True),
            Aim("the same, bf16", r"\| bf16 \| [\d.]+ .*\| ([\d.]+) \|\n", 5, "times", more=True),
        ],
    ),
    "inference": (
        ["--repeats", "3"],
        [
            Aim(f"{name}, {precision}", rf"{key} at[\s\S]*?\| {engine} \| ([\d.]+)", hoped, "ms")
            for key, name, aims in (
                ("knowsam_trio", "KnowSAM's trio, 256 px", (50, 25)),
                ("polyp_pvt", "KDAS's student, 352 px", (18, 10)),
                ("esp_medsam", "ESP-MedSAM's student, 1024 px", (450, 250)),
            )
            for precision, engine, hoped in (("fp32", "openvino fp32", aims[0]), ("bf16", "openvino bf16", aims[1]))
        ],
    ),
    "step_speed": (
        ["--threads", "2"],
        [
            Aim("U-Net, engine to bare loop, fp32", r"engine / bare, 32 +([\d.]+)", 1.05, "times"),
            Aim("the same, bf16", r"engine / bare, bf16 +([\d.]+)", 1.05, "times"),
        ],
    ),
    "data_speed": (
        ["{data}", "--threads", "2"],
        [
            Aim("batches from the cache", r"\n  cache +([\d.]+)", 2000, "images/s", more=True),
            Aim("ratio to a DataLoader that decodes", r"ratio, pair by pair +([\d.]+)", 5, "times", more=True),
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set, for data_speed.py")
    given = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    keep("limits_before", ["-c", LIMITS])
    for name, (words, _) in PLANS.items():
        keep(name, [str(HERE / f"{name}.py"), *(word.format(data=given.data.resolve()) for word in words)])
    keep("limits_after", ["-c", LIMITS])
    print(speed_table())


def keep(name: str, words: list[str]) -> None:
    """Run Python with these words; what it prints, and how long it took, goes to a file."""
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=HERE, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    text = f"{done.stdout.rstrip()}\n({time.perf_counter() - start:.0f} s)\n"
    (RESULTS / f"{name}.txt").write_text(text, encoding="utf-8")


def speed_table() -> str:
    """Markdown, of what was kept."""
    lines = ["| | aim | measured | |", "|---|---|---|---|"]
    for name, (_, aims) in PLANS.items():
        file = RESULTS / f"{name}.txt"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        lines += [line(aim, text) for aim in aims]
    return "\n".join(lines) + limits()


def limits() -> str:
    """What the machine could do, before the first and after the last benchmark."""
    files = [RESULTS / f"limits_{when}.txt" for when in ("before", "after")]
    if not all(file.exists() for file in files):
        return ""
    rows = [re.findall(r"\| (\w[^|]*) \| (\d+) \| (\d+) \|", file.read_text(encoding="utf-8")) for file in files]
    pairs = zip(*rows, strict=True)
    found = [f"{a[0]} {a[1]} and {b[1]} in fp32, {a[2]} and {b[2]} in bf16" for a, b in pairs]
    return f"\n\nThe machine's limits before and after, GFLOP/s: {'; '.join(found)}. Parentheses: least to most."


def line(aim: Aim, text: str) -> str:
    """One aim, met or missed, by how much."""
    sign = "≥" if aim.more else "≤"
    found = re.search(aim.pattern, text)
    if not found:
        return f"| {aim.what} | {sign} {aim.hoped:g} {aim.unit} | not run | |"
    figure = float(found[1])
    ratio = aim.hoped / figure if aim.more else figure / aim.hoped
    verdict = "met" if ratio <= 1 else f"missed by {ratio - 1:.0%}"
    around = re.match(r" \(([\d.]+) to ([\d.]+)\)", text[found.end(1) :])
    spread = around[0] if around and around[1] != around[2] else ""
    return f"| {aim.what} | {sign} {aim.hoped:g} {aim.unit} | {figure:g} {aim.unit}{spread} | {verdict} |"


if __name__ == "__main__":
    main()
