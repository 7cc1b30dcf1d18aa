"""demo: the main job on generated images, from a folder to a report, predictions and an ONNX file."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.table import Table

from ..data.phantom import write_phantom
from ..methods.supervised import SupervisedConfig
from ..types import UserError
from .options import TrainOptions
from .terminal import console, interval
from .train import train
from .use import export, predict

BUDGETS = ("8", "100")


def demo(out: Path | str = "runs/demo", *, iterations: int = 600, threads: int | None = None, seed: int = 0) -> Path:
    """Generate a phantom set, train with 8 and with 100 masks, compare, predict, export. A few minutes on a laptop.

    Args:
        out: Folder to create; an earlier demo there is replaced.
        iterations: Updates of each training.
        threads: CPU threads.
        seed: Of data and training.

    Raises:
        UserError: `out` holds something else.
    """
    out = Path(out)
    data = out / "phantom"
    if out.exists() and any(out.iterdir()) and not data.is_dir():
        raise UserError(f"{out}: holds something that no demo wrote; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    write_phantom(data, seed=seed)
    console.print(f"phantom images: {data}", markup=False)
    results = {}
    for labels in BUDGETS:
        console.rule(f"supervised, {labels} masks")
        options = TrainOptions(
            labelled=labels, size=96, iterations=iterations, threads=threads, seed=seed, cache=out / "cache"
        )
        results[labels] = train(data, out / f"supervised_{labels}", options, SupervisedConfig(batch_size=8))
    console.rule("predict and export")
    best = results[BUDGETS[-1]].folder
    predict(best, [data / "images"], out / "predictions", overlays=True, threads=threads)
    export(best, out / "student.onnx")
    table = Table("masks", "test Dice [95 % interval]", title="What more masks are worth", title_justify="left")
    for labels, result in results.items():
        table.add_row(labels, interval(result.summary["mean"]["dice"]))
    console.print(table)
    console.print(f"look at {best / 'report.html'} and {out / 'predictions'}", markup=False)
    return out
