"""demo: the main job on generated images, from a folder to a report, predictions and an ONNX file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ..data.phantom import write_phantom
from ..methods.knowsam import KnowSAMConfig
from ..methods.supervised import SupervisedConfig
from ..types import UserError
from .compare import compare
from .export import export
from .options import TrainOptions, check_options
from .runs import write_text
from .terminal import console, interval
from .train import TrainResult, train
from .use import predict

MASKS = "8"
TRAININGS: dict[str, Any] = {  # method -> its settings, and its updates as a share of those asked for
    "supervised": (SupervisedConfig(batch_size=8), 1.0),
    "knowsam": (KnowSAMConfig(teacher="tiny", labelled_batch=4, other_batch=4, warm_up=30, mix_from_dice=0.5), 0.75),
}

MARK = "demo.txt"  # a folder without it is not a demo's
WRITTEN = ("phantom", "cache", *TRAININGS, "comparison", "predictions", "student.onnx")


def demo(out: Path | str = "runs/demo", *, iterations: int = 400, threads: int | None = None, seed: int = 0) -> Path:
    """Generate a phantom set, train on 8 masks without and with the unlabelled images, compare, predict, export.

    KnowSAM, with a SAM without weights, against the supervised baseline: a few minutes on a laptop.

    Args:
        out: Folder to create; what an earlier demo wrote there is replaced, anything beside it stays.
        iterations: Updates of the baseline; KnowSAM, whose updates cost more, has three quarters of them.
        threads: CPU threads.
        seed: Of data and training.

    Raises:
        UserError: an option that cannot be used, or `out` is a file, or holds something and no demo.
    """
    out = Path(out)
    data = out / "phantom"
    common = TrainOptions(
        labelled=MASKS, size=96, iterations=iterations, threads=threads, seed=seed, cache=out / "cache"
    )
    check_options(common)
    _clear(out)
    write_phantom(data, seed=seed)
    console.print(f"phantom images: {data}", markup=False)
    results: dict[str, TrainResult] = {}
    for method, (config, share) in TRAININGS.items():
        console.rule(f"{method}, {MASKS} masks")
        updates = max(1, round(share * iterations))
        options = replace(
            common,
            method=method,
            iterations=updates,
            validate_every=max(1, updates // 8),
            baseline=results["supervised"].folder if results else None,
        )
        results[method] = train(data, out / method, options, config)
    console.rule("compare, predict, export")
    compare([result.folder for result in results.values()], out / "comparison")
    best = results["knowsam"].folder
    predict(best, [data / "images"], out / "predictions", overlays=True, threads=threads)
    export(best, out / "student.onnx")
    table = Table("method", "test Dice [95 % interval]", title=f"{MASKS} masks, one seed", title_justify="left")
    for method, result in results.items():
        table.add_row(method, interval(result.summary["mean"]["dice"]))
    console.print(table)
    console.print(f"look at {best / 'report.html'} and {out / 'predictions'}", markup=False)
    return out


def _clear(out: Path) -> None:
    """Make room for a demo: only what an earlier one wrote goes, and nothing from a folder that is not a demo's."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out needs a folder")
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UserError(f"{out}: holds something that no demo wrote; choose another --out, or empty it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be created ({error.strerror}); choose another --out") from None
    write_text(out / MARK, f"Written by segdistill demo. The next demo here replaces {', '.join(WRITTEN)}.\n")
    for name in WRITTEN:
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "student.onnx").unlink(missing_ok=True)
