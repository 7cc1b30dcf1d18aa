"""train: a folder in; a trained student, honest scores and a report out. resume: the same, from where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock, Timeout

from ..data.batches import Dataset, TrainingBatches
from ..data.rows import Row
from ..engine.evaluator import write_scores
from ..engine.logging import RunLog
from ..engine.memory import keep_freed_memory
from ..engine.precision import resolve_device
from ..engine.processes import Processes
from ..engine.randomness import seed_everything
from ..engine.trainer import Trained, Trainer
from ..types import Known, Store, Task, UserError
from .contributions import better_beside, method_remarks, other_students, save_scored
from .data import load_data, prepare_data
from .export import export
from .named_weights import ENTRY, named_weights, require_same_weights
from .options import TrainOptions, check_config, check_options, parse_size
from .outcome import caveats, check_findings, save_last, scoring, student_card
from .reporting import read_log, training_report
from .runs import (
    config_text,
    method_named,
    new_folder,
    provenance,
    read_config,
    read_json,
    take_back,
    write_json,
    write_text,
)
from .scored import read_run, require_tolerance
from .taught import refuse_leaks, told_caveats
from .terminal import console, show_scores


@dataclass(frozen=True)
class TrainResult:
    """What a run left: its folder and the summary of its scores."""

    folder: Path
    summary: dict[str, Any]


def train(
    data: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    options: TrainOptions | None = None,
    config: Any = None,
) -> TrainResult:
    """Train a student on one or several data folders and score it once on the test split.

    Args:
        data: Folder (images/ + masks/, or KnowSAM's layout) or CSV manifest; or several.
        out: Run folder to create; default runs/NAME-METHOD-TIME.
        options: Data, loop and output; default TrainOptions().
        config: The method's own settings, e.g. segdistill.methods.knowsam.KnowSAMConfig(teacher="tiny"); default that
            class's defaults.

    Returns:
        The run's folder and the summary of its scores, as in summary.json.

    Raises:
        UserError: Input that cannot be used; nothing written before is lost.
        Interrupted: As `resume`.
    """
    options = options or TrainOptions()
    check_options(options)
    config = config or method_named(options.method).Config()
    check_config(options.method, config)
    with _processes(options) as processes:
        folders = [Path(one) for one in ([data] if isinstance(data, str | Path) else data)]
        folder = processes.first(lambda: _new_run(folders, out, options, config))
        with _refused_unbegun(folder, processes):
            return _carry_on(folder, processes)


@contextmanager
def _refused_unbegun(run: Path, processes: Processes) -> Iterator[None]:
    """Inside, what a new run is refused for before its first update takes it back: the mended command may have --out.

    Methods are built when the data are read, so some of their refusals come after the run was written.
    """
    try:
        yield
    except Exception:
        log = run / "log.jsonl"
        begun = (run / "checkpoints").exists() or (log.exists() and log.stat().st_size > 0)
        if processes.rank == 0 and not begun and not _held(run):
            take_back(run)
        raise


def _held(run: Path) -> bool:
    """Whether another process trains this run."""
    try:
        with FileLock(run / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


def _known(options: TrainOptions, config: Any) -> Known | None:
    """What the student knows to which this run adds, if it does."""
    known: Callable[[Any], Known | None] | None = getattr(method_named(options.method), "known", None)
    return known(config) if known else None


def _processes(options: TrainOptions) -> Processes:
    return Processes(options.devices, options.nodes, resolve_device(options.device))


def _new_run(data: Sequence[Path], out: Path | str | None, options: TrainOptions, config: Any) -> Path:
    """A run folder that knows its data and settings."""
    require = getattr(method_named(options.method), "require", None)
    if require:
        config = require(config)
    known = _known(options, config)
    options = _with_baseline(options)
    if options.cache:  # resumed from another folder, it is the same
        options = replace(options, cache=options.cache.resolve())

    def refuse(rows: Sequence[Row]) -> None:
        if not options.allow_leakage:
            refuse_leaks(config, rows)

    folder = new_folder(Path(out) if out else None, data, options)
    lock = _taken(folder)
    try:
        new_folder(folder, data, options)  # nobody began one here meanwhile
    except UserError:
        lock.release()
        raise
    try:
        prepare_data(data, folder, options, known, refuse)
        write_json(folder / "run.json", provenance() | {ENTRY: named_weights(config)})
        write_text(folder / "config.yaml", config_text(data, options, config))
    except UserError:
        lock.release()
        take_back(folder)
        raise
    finally:
        lock.release()
    return folder


def _taken(run: Path) -> FileLock:
    """The run's lock; UserError where another process has it. A killed one leaves none."""
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{run}: another process is training this run; wait until it ends, or stop it") from None
    return lock


def _with_baseline(options: TrainOptions) -> TrainOptions:
    """The options with the baseline's absolute path; UserError where it could not be compared with after training."""
    if options.baseline is None:
        return options
    baseline = read_run(options.baseline)
    if baseline.seed is not None and (baseline.seed, baseline.drawn_by) != (options.seed, options.drawn_by):
        raise UserError(
            f"--baseline {options.baseline}: of seed {baseline.seed}, its splits of seed {baseline.drawn_by}; this run "
            f"has {options.seed} and {options.drawn_by}, and runs are compared seed by seed on the same splits: "
            f"train with --seed {baseline.seed} --split_seed {baseline.drawn_by}, or give another baseline"
        )
    require_tolerance(baseline, options.tolerance)
    return replace(options, baseline=options.baseline.resolve())


def resume(run: Path | str) -> TrainResult:
    """Carry a run on from its last checkpoint to the end; a finished one is only shown.

    Of several processes only the first one returns; the others end (SystemExit) when the training does.

    Raises:
        UserError: No run there, or its data changed.
        Interrupted: SIGTERM, Ctrl-C or the loss of a process; the run has saved itself.
    """
    run = Path(run)
    with _processes(read_config(run)[1]) as processes:
        return _carry_on(run, processes)


def _carry_on(run: Path, processes: Processes) -> TrainResult:
    folders, options, config = read_config(run)
    if (run / "report.html").exists():
        console.print(f"{run}: finished already; see {run / 'report.html'}", markup=False)
        _export(run, options)
        return TrainResult(run, read_json(run / "summary.json"))
    processes.launch(run)
    console.quiet = processes.rank > 0
    with _alone(run, processes):
        return _to_the_end(run, folders, options, config, processes)


def _to_the_end(
    run: Path, folders: Sequence[Path], options: TrainOptions, config: Any, processes: Processes
) -> TrainResult:
    """Train from where the run stands, score, and write the report."""
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    processes.first(lambda: require_same_weights(run, config))
    known = _known(options, config)
    loaded = processes.in_turn(lambda: load_data(run, options, known))
    data = loaded.dataset
    warnings = [*caveats(data, options.flips), *told_caveats(config, data.rows), *check_findings(run)]
    for line in warnings:
        console.print(f"warning: {line}", markup=False, style="yellow")
    with _timed(run, processes), _memory_told(options, run):
        trained, method = _fit(run, folders, data, options, config, processes)
    processes.part()
    card = student_card(run, loaded, options, config, method.student, known)
    save_last(run, method, trained, card)
    split, score = scoring(run, loaded, options)
    evaluation = save_scored(run / "student", method.student, card, score)
    students = other_students(run, method, card, score)
    log = read_log(run)
    beside, remarks = tuple(better_beside(method, log)), method_remarks(method, log, data)
    remarks = remarks._replace(sentences=(*remarks.sentences, *beside))
    seconds = read_json(run / "run.json")["training seconds"]
    extra = {"scored split": split, "best validation Dice": trained.best, "training seconds": seconds}
    evaluation.summary["run"] = extra | {
        "precision": trained.precision,
        "labelled": len(data.numbers("train", labelled=True)),
    }
    if students:
        evaluation.summary["students"] = students
    write_scores(run, evaluation)
    training_report(run, evaluation, data.rows, loaded.sources, warnings, remarks)
    show_scores(f"{split} split, original resolution", evaluation.summary)
    for line in remarks.sentences:
        console.print(line, markup=False)
    console.print(f"report: {run / 'report.html'}\nstudent: {run / 'student'}", markup=False)
    _export(run, options)
    return TrainResult(run, evaluation.summary)


def _export(run: Path, options: TrainOptions) -> None:
    """The ONNX file, if it was asked for and an interrupted run did not get to it."""
    if options.onnx and not (run / "student.onnx").exists():
        export(run, run / "student.onnx", threads=options.threads)


@contextmanager
def _alone(run: Path, processes: Processes) -> Iterator[None]:
    """Inside, no other training writes into this run; UserError where one does."""
    held: list[FileLock] = []
    processes.first(lambda: held.append(_taken(run)))
    try:
        yield
    finally:
        for lock in held:
            lock.release()


@contextmanager
def _timed(run: Path, processes: Processes) -> Iterator[None]:
    """Add the time spent here to the run's own, also when it is interrupted; what a kill cut off is not counted."""
    if processes.rank > 0:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        made = read_json(run / "run.json")
        made["training seconds"] = round(made.get("training seconds", 0.0) + time.perf_counter() - start, 1)
        write_json(run / "run.json", made)


def _fit(
    run: Path, folders: Sequence[Path], data: Dataset, options: TrainOptions, config: Any, processes: Processes
) -> tuple[Trained, Any]:
    """Train the method; the student comes back with its best weights, in eval mode on the CPU."""
    batches = TrainingBatches(data, options.seed, _balance(data, options))
    task = Task(
        classes=len(data.classes),
        size=parse_size(options.size),
        modalities=data.modalities,
        labelled=len(batches.labelled),
        others=len(batches.others),
        modality_classes=data.modality_classes,
        names=data.classes,
        validated=len(data.validated) > 0,
        fit=options.fit,
        neighbours=options.neighbours,
        store=Store(
            run / "embeddings",
            tuple(np.sort(np.concatenate([batches.labelled, batches.others])).tolist()),
            lambda line: console.print(line, markup=False),
        ),
    )
    seed_everything(options.seed)
    method = method_named(options.method)(config, task)
    with RunLog(run, console, tensorboard=options.tensorboard, silent=processes.rank > 0) as log:
        trainer = Trainer(method, batches, options, run, processes.device, log, processes)
        precision = trainer.start()
        if precision != options.precision:
            console.print(f"precision: {precision}, the faster one here")
            options = replace(options, precision=cast(Any, precision))
            if processes.rank == 0:
                write_text(run / "config.yaml", config_text(folders, options, config))
        trained = trainer.run()
    return trained, method.cpu().eval()


@contextmanager
def _memory_told(options: TrainOptions, run: Path) -> Iterator[None]:
    """Inside, memory that does not suffice is one line; torch says it in three ways."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not told:
            raise
        raise UserError(
            f"out of memory at --size {options.size}: give a smaller size, or a smaller batch (a setting of "
            f"{options.method}) with --accumulate, in a new run; {run} is kept up to its last checkpoint"
        ) from error


def _balance(data: Dataset, options: TrainOptions) -> float:
    """What `--balance` says; by default several data sets are drawn by the square root of their modalities' sizes."""
    if options.balance is not None:
        return options.balance
    return 0.5 if len(data.datasets) > 1 else 0.0
