"""The scores of a finished run, or of a folder that evaluate wrote, as compare needs them."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from ..formats import IMAGE_SUFFIXES
from ..types import UserError
from .runs import read_config, read_json

# What may differ between the seeds of one group: where and how fast a run went, not what it does.
ASIDE = (
    "seed",
    "baseline",
    "onnx",
    "device",
    "precision",
    "compile",
    "tensorboard",
    "threads",
    "cache",
    "licence",
    "tolerance",
)

Key: TypeAlias = tuple[str, str, str]  # dataset, image, class


@dataclass(frozen=True)
class Cell:
    """One row of scores.csv."""

    patient: str
    scores: tuple[float, ...]  # in the order of SCORES; NaN where the score is not of this kind of reference
    reference: tuple[int, int]  # pixels of the reference mask, and of the image


@dataclass(frozen=True)
class Run:
    """A folder of scores, with what is known of the training behind them."""

    folder: Path
    method: str  # "" where unknown
    settings: Mapping[str, str]
    seed: int | None  # None: a folder of `evaluate`, whose training is unknown
    cells: Mapping[Key, Cell]
    unit: str
    tolerance: float | None
    scored: str  # split; "" where unknown

    @property
    def drawn_by(self) -> int | None:
        """The seed of its splits."""
        drawn = self.settings.get("split_seed", "None")
        return self.seed if drawn == "None" else int(drawn)

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for runs that differ only in their seed; a folder without a configuration stands alone."""
        if self.seed is None:
            return (self.folder.resolve(),)
        return self.method, tuple(sorted({key[0] for key in self.cells})), tuple(sorted(self.settings.items()))


def read_run(folder: Path) -> Run:
    """A finished run, or a folder that evaluate wrote; UserError when it is neither."""
    if not (folder / "scores.csv").is_file():
        ended = "its training has not ended; go on with train --resume" if (folder / "config.yaml").exists() else ""
        raise UserError(f"{folder}: no scores.csv; {ended or 'give a run folder, or one that evaluate --out wrote'}")
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    known = (folder / "config.yaml").exists()
    method, settings, seed = _training(folder) if known else ("", {}, None)
    return Run(
        folder=folder,
        method=method,
        settings=settings,
        seed=seed,
        cells=dict(_read_cells(folder / "scores.csv")),
        unit=summary.get("unit", "px"),
        tolerance=summary.get("tolerance"),
        scored=summary.get("run", {}).get("scored split", ""),
    )


def require_tolerance(baseline: Run, tolerance: float) -> None:
    """UserError where scores with this tolerance could not be compared with the baseline's, before there are any."""
    if baseline.tolerance not in (None, tolerance):
        raise UserError(
            f"--baseline {baseline.folder}: scored with --tolerance {baseline.tolerance:g}, not {tolerance:g}; give "
            f"--tolerance {baseline.tolerance:g}, or score the baseline with evaluate --tolerance {tolerance:g} --out"
        )


def _training(folder: Path) -> tuple[str, dict[str, str], int]:
    """Method, settings and seed of a run."""
    _, options, config = read_config(folder)
    values = {k: v for k, v in asdict(options).items() if k not in ASIDE}
    shared = values.keys() - {"iterations"}  # which an option says in place of the method's own
    values |= {f"{options.method}.{k}" if k in shared else k: v for k, v in asdict(config).items()}
    if options.iterations is not None:
        values["iterations"] = options.iterations  # in place of the method's own
    return options.method, {key: _described(value) for key, value in values.items()}, options.seed


def _described(value: object) -> str:
    """A setting; where it names a run, what that run did: students whose teachers differ in the seed are one group.

    Of the several students of a run it says which, unless it is the one that the run's folder stands for.
    """
    path = Path(value) if isinstance(value, str) else Path()
    around = (path, path.parent, *(path.parents[1:2] if path.parent.name == "students" else ()))
    for folder in around if path.is_absolute() else ():  # as a run's config names files
        if (folder / "config.yaml").is_file():
            method, settings, _ = _training(folder)
            digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()
            inside = path.relative_to(folder).as_posix()
            which = "" if inside in (".", "student") else f"'s {inside}"
            return f"a {method} run{which} ({digest[:6]})"
    return str(value)


def _read_cells(path: Path) -> Iterator[tuple[Key, Cell]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                tp, fp, fn, tn = (int(row[name]) for name in ("tp", "fp", "fn", "tn"))
                scores = (math.nan, math.nan, math.nan, float(fp > 0))
                if tp + fn:
                    scores = (float(row["dice"]), float(row["hd95"]), float(row["nsd"]), math.nan)
                yield (
                    (row["dataset"], row["image"], row["class"]),
                    Cell(row["patient"], scores, (tp + fn, tp + fp + fn + tn)),
                )
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a table of scores ({reason}); score the run again with evaluate") from None


def by_stem(run: Run) -> dict[tuple[str, str], Key]:
    """Keys by file name without suffix and class, for masks of other tools; empty where names occur twice."""
    found = {}
    for key in run.cells:
        path = PurePosixPath(key[1])
        found[path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name, key[2]] = key
    return found if len(found) == len(run.cells) else {}
