"""The log: every term of every update to log.jsonl, a line or a bar to the terminal, TensorBoard if asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..types import UserError

PACED = 10  # updates after which the pace is told


class RunLog:
    """Appends to log.jsonl (deterministic: no times in it) and shows the run on the terminal; a silent one neither."""

    def __init__(self, folder: Path, console: Console, *, tensorboard: bool = False, silent: bool = False) -> None:
        self.path = folder / "log.jsonl"
        self.console = Console(quiet=True) if silent else console
        self.silent = silent
        self.best: float | None = None
        self._paced = 0  # the update whose pace is told; 0: told
        self._total = 0
        self._file: TextIO | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=silent or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1, status="")
        self._board = _board(folder) if tensorboard and not silent else None

    def __enter__(self) -> RunLog:
        if not self.silent:
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._board:
            self._board.close()
        with self._writing():
            if self._file:
                self._file.close()

    def cut(self, stage_names: list[str], stage: int, iteration: int, validated: int) -> None:
        """Drop what was logged after this update and its last validation: a resumed run writes it again, the same."""
        if self.silent:
            return
        temporary = self.path.with_suffix(".tmp")
        with self._writing():
            if self._file:
                self._file.close()
            kept = "".join(self._until(stage_names, stage, iteration, validated))
            temporary.write_text(kept, encoding="utf-8", newline="\n")
            temporary.replace(self.path)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")

    def _until(self, stage_names: list[str], stage: int, iteration: int, validated: int) -> Iterator[str]:
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                return  # a line that a kill cut short
            place = stage_names.index(entry["stage"]), entry["iteration"]
            if place > (stage, iteration) or ("validation" in entry and place > (stage, validated)):
                return
            yield line

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Show a new bar."""
        self._bar.reset(self._task, total=total, completed=done, description=name, status="")
        self._total, self._paced = total, 0 if self.console.is_terminal else done + PACED

    def training(self, entry: dict[str, Any], rate: float) -> None:
        """One update."""
        self._write(entry)
        best = "" if self.best is None else f" | best Dice {self.best:.4f}"
        status = f"loss {entry['loss']:.4f} | {rate:.1f} it/s{best}"
        self._bar.update(self._task, completed=entry["iteration"], status=status)
        if entry["iteration"] == self._paced:
            self._tell_pace(entry["stage"], (self._total - self._paced) / rate, rate)
        self._to_board(entry["stage"], entry["iteration"], {"loss": entry["loss"], "lr": entry["lr"], **entry["terms"]})

    def _tell_pace(self, stage: str, seconds: float, rate: float) -> None:
        """Where there is no bar a line says early how long it will take; of what is soon over, nothing."""
        if seconds >= 60:
            pace = f"{1 / rate:.1f} s per update" if rate < 1 else f"{rate:.1f} updates per second"
            self.console.print(f"{stage}: {pace}, about {seconds / 60:.0f} min for {self._total}", highlight=False)

    def validation(self, entry: dict[str, Any], total: int) -> None:
        """One validation; also a line on the terminal."""
        self._write(entry)
        dice = entry["validation"]["dice"]
        mark = " *" if self.best == dice else ""
        self.console.print(
            f"{entry['stage']} {entry['iteration']}/{total}: validation Dice {dice:.4f}{mark}", highlight=False
        )
        for kind in ("validation", "watched", "hidden"):
            values = entry.get(kind, {})
            self._to_board(entry["stage"], entry["iteration"], {f"{kind}/{k}": v for k, v in values.items()})

    def sync(self) -> None:
        """Put on disk what was logged so far; before a checkpoint says it was."""
        if self._file:
            with self._writing():
                self._file.flush()
                os.fsync(self._file.fileno())

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file:
            with self._writing():
                self._file.write(json.dumps(entry) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A disk that refuses is one line. Writes are buffered, so it mostly does so at a flush or a close."""
        try:
            yield
        except OSError as error:
            resume = f"segdistill train --resume {self.path.parent}"
            raise UserError(f"{self.path}: cannot write ({error}); free some space, then {resume}") from error

    def _to_board(self, stage: str, iteration: int, values: Mapping[str, float]) -> None:
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{stage}/{name}", value, iteration)


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard true needs TensorBoard: pip install 'segdistill[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))
