"""What each precision costs a trained student in Dice: one row per exported file, on the run's own validation images.

    python benchmarks/exported_dice.py runs/first [runs/second ...] [--data FOLDER]

The same files and figures as `segdistill export` makes of it; a file that is refused has a row that says so.
Milliseconds and memory are of processes of their own, with all cores: run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from segdistill.api.export import export
from segdistill.deploy.variants import Variant
from segdistill.types import UserError

FILES = [(name, precision) for name in ("onnx", "openvino") for precision in ("bf16", "int8")]  # fp32 beside the first
HEAD = "| | MB | ms | peak MB | pixels as torch | Dice |\n|---|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, help="measure on this instead; see export")
    given = parser.parse_args()
    for run in given.runs:
        with tempfile.TemporaryDirectory() as folder:
            show(run, Path(folder), given.data)


def show(run: Path, folder: Path, data: Path | None) -> None:
    """A Markdown table of one student."""
    rows: dict[str, str] = {}
    images = 0
    for name, precision in FILES:
        out = folder / f"{precision}.{'xml' if name == 'openvino' else 'onnx'}"
        try:
            made = export(run, out, data=data, precision=precision, format=name)
        except UserError as error:
            rows[f"{name} {precision}"] = f"| {name} {precision} | refused: {error} |"
            continue
        images = made.images
        rows |= {one.name: row(one) for one in made.variants if one.name not in rows}
    print(f"\n{run.name}, {images} images\n\n{HEAD}")
    print("\n".join(rows.values()), flush=True)


def row(one: Variant) -> str:
    peak = "–" if one.cost.peak is None else f"{one.cost.peak / 1e6:.0f}"
    return f"| {one.name} | {one.bytes / 1e6:.1f} | {one.cost.ms:.1f} | {peak} | {one.equal:.3%} | {one.dice:.4f} |"


if __name__ == "__main__":
    main()
