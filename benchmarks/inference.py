"""What each student costs to run: torch, onnxruntime and OpenVINO in fp32, bf16 and int8, with random weights.

    python benchmarks/inference.py [knowsam_trio polyp_pvt esp_medsam] [--side 64] [--repeats 3]

Weights do not change the time, so none are trained; the files say nothing about Dice. Each figure is that of a process
of its own with all cores: median ms of an image of the input size, the most memory that the process held, the size of
the file. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segdistill.deploy.artefact import Card, save_student
from segdistill.deploy.export import export_onnx, synthetic_images
from segdistill.deploy.low_precision import halve, metadata, quantise
from segdistill.deploy.measure import measure
from segdistill.deploy.openvino_file import write_openvino
from segdistill.models.students import build_student


@dataclass(frozen=True)
class Case:
    """A student at the size that its issue names, with what the issue hopes for: ms in fp32, in low precision."""

    arguments: dict[str, Any]
    side: int
    aims: tuple[float, float]


CASES = {
    "knowsam_trio": Case({"classes": 2}, 256, (50, 25)),
    "polyp_pvt": Case({"classes": 2, "backbone": "b0"}, 352, (18, 10)),
    "esp_medsam": Case({"classes": 2, "modalities": [""], "skips": True}, 1024, (450, 250)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=[*CASES])
    parser.add_argument("--side", type=int, help="another input size for all")
    parser.add_argument("--repeats", type=int, default=3, help="processes per figure, in turn")
    given = parser.parse_args()
    for name in given.students:
        with tempfile.TemporaryDirectory() as folder:
            show(name, given.side or CASES[name].side, files(name, given.side, Path(folder)), given.repeats)


def files(name: str, side: int | None, folder: Path) -> dict[str, Path]:
    """Engine and precision -> the student's folder or file."""
    case = CASES[name]
    size = (side or case.side,) * 2
    torch.manual_seed(0)
    network = build_student(name, **case.arguments).eval()
    card = Card(name, case.arguments, "", ("a", "b"), ((0, 0, 0), (255, 255, 255)), size, "")
    save_student(folder / "student", network, card)
    graphs = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "bf16", "int8")}
    export_onnx(folder / "student", graphs["fp32"])
    halve(graphs["fp32"], graphs["bf16"])
    quantise(graphs["fp32"], graphs["int8"], synthetic_images(size)[:2])
    found = {"torch fp32": folder / "student"} | {f"onnxruntime {p}": path for p, path in graphs.items()}
    for precision, graph in graphs.items():
        found[f"openvino {precision}"] = graph.with_suffix(".xml")
        source = graphs["int8" if precision == "int8" else "fp32"]
        write_openvino(source, graph.with_suffix(".xml"), metadata(graph), half=precision == "bf16")
    return found


def show(name: str, side: int, found: dict[str, Path], repeats: int) -> None:
    """A Markdown table; the engines take turns, so that a change of the machine's speed meets all."""
    rounds = [{engine: measure(path) for engine, path in found.items()} for _ in range(repeats)]
    fp32, low = CASES[name].aims
    print(f"\n{name} at {side} px (aims: {fp32:g} ms in fp32, {low:g} ms in low precision)\n")
    print("| | ms | peak MB | MB |\n|---|---|---|---|")
    for engine, path in found.items():
        ms = [one[engine].ms for one in rounds]
        peaks = [one[engine].peak for one in rounds]
        peak = "–" if None in peaks else f"{statistics.median(peaks) / 1e6:.0f}"
        parts = (
            path.iterdir() if path.is_dir() else {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}
        )
        size = sum(part.stat().st_size for part in parts) / 1e6
        print(f"| {engine} | {statistics.median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f}) | {peak} | {size:.1f} |")


if __name__ == "__main__":
    main()
