"""The one loop: a method's stages, updated, validated, checkpointed, resumable at any moment."""

from __future__ import annotations

import gc
import math
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..data.batches import TrainingBatches
from ..models.statistics import precise_statistics, training_norms
from ..types import Batch, Method, Stage, StepOutput
from . import checkpoint
from .checkpoint import Progress
from .interrupt import Interrupted, StopSignals
from .logging import RunLog
from .plan import planned, rescaled, set_trainable, validation_interval
from .precision import choose
from .processes import Lost, Processes, remembered, running_statistics
from .randomness import seed_everything
from .settings import Settings
from .terms import Terms
from .validation import Validation, validate

MEASURED = 64  # training images that batch norm's statistics are measured on


class StepModule(nn.Module):
    """The one module that Fabric wraps: its forward calls a step, so that several processes stay in step.

    Terms leave it detached: DDP expects a gradient for whatever an output depends on, and only the loss has one.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, step: object, batch: Batch, progress: float) -> StepOutput:
        """Call the stage's step."""
        output = cast(StepOutput, step(batch, progress))  # type: ignore[operator]
        return StepOutput(output.loss, {name: term.detach() for name, term in output.terms.items()})


@dataclass(frozen=True)
class Trained:
    """The end of a training: the method holds the best weights; `last` is the file of the last ones."""

    best: float | None
    last: Path
    precision: str


class Trainer:
    """Runs a method's stages on batches, writing to a run folder."""

    def __init__(
        self,
        method: nn.Module,
        batches: TrainingBatches,
        settings: Settings,
        folder: Path,
        device: str,
        log: RunLog,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes(device=device)
        self.method = method
        self.batches = batches
        self.settings = settings
        self.checkpoints = folder / "checkpoints"
        self.folder = folder
        self.log = log
        self.device = torch.device(self.processes.device)
        self.method.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.processes.world > 1 and self.device.type == "cuda":  # on the CPU it has no kernels
            nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        rows = (len(batches.labelled), len(batches.others))
        self.stages = planned(cast(Method, method).stages(), settings, rows, self.processes.world)
        self.progress = Progress()
        self.module: Any = None
        self.terms = Terms(log, self.processes, self._kept)
        # What the last whole update left of the buffers that a forward writes; None inside of an update
        self.statistics: list[Tensor] = []
        self.remembered: list[Tensor] = []
        self.settled: list[Tensor] | None = []

    def start(self) -> str:
        """Prepare the first stage, or the one a checkpoint stands in; returns the precision, settled once per run."""
        number, file = self.processes.first(self._last)
        self.processes.in_turn(lambda: self._prepare(number, file))
        stage = self.stages[number]
        if not self.progress.precision:
            set_trainable(self.method, stage.optimizers)
            batch = self._draw(0, stage, 0, 0)
            if self.settings.precision == "auto":
                self.log.console.print("precision: measuring which is faster here")
            chosen = choose(self.settings.precision, stage, self.method, batch)
            self.progress.precision = self.processes.first(lambda: chosen)
        self.fabric = self.processes.fabric("bf16-mixed" if self.progress.precision == "bf16" else "32-true")
        return self.progress.precision

    def _last(self) -> tuple[int, Path | None]:
        """(stage, file) of the last checkpoint."""
        files = checkpoint.checkpoints(self.checkpoints)
        return (checkpoint.peek(files[-1]).stage, files[-1]) if files else (0, None)

    def run(self) -> Trained:
        """Train from where `start` stands to the end of the last stage."""
        first, precision = self.progress.stage, self.progress.precision
        for number in range(first, len(self.stages)):
            if number > first:
                self.processes.in_turn(partial(self._prepare, number, None))
                self.progress.precision = precision
            self._wrap(self.stages[number])
            with StopSignals() as self.signals:
                try:
                    self._run_stage(self.stages[number])
                except RuntimeError as error:
                    self._part_from_lost(self.stages[number], error)
            if self.progress.best_file:
                if self.processes.rank == 0:
                    checkpoint.load_weights(self.checkpoints / self.progress.best_file, self.method)
                self.processes.share(checkpoint.stored_state(self.method).values())
        return Trained(self.progress.best, cast(Path, self.processes.first(self._last)[1]), precision)

    def _prepare(self, number: int, file: Path | None) -> None:
        """Let the stage prepare itself, then load its checkpoint if there is one, and cut the log back to it."""
        stage = self.stages[number]
        seed_everything(self.settings.seed, number)
        stage.prepare()
        self.progress = checkpoint.load(file, self.method, stage.optimizers) if file else Progress(stage=number)
        self.log.cut([s.name for s in self.stages], number, *self._logged(file))

    def _logged(self, file: Path | None) -> tuple[int, int]:
        return (self.progress.iteration, self.progress.validated) if file else (-1, -1)

    def _wrap(self, stage: Stage) -> None:
        """One module goes to Fabric, anew per stage."""
        self.log.best = self.progress.best
        self.log.start_stage(stage.name, stage.iterations, self.progress.iteration)
        set_trainable(self.method, stage.optimizers)
        if self.processes.world > 1:
            if self.module is not None:
                self.module = None
                gc.collect()  # the hooks of the stage before would count gradients too
            self.processes.share(checkpoint.stored_state(self.method).values())
            self.statistics = running_statistics(self.method)
            self.remembered = remembered(self.method)
            self.settled = self._written()
        module: nn.Module = StepModule(self.method)
        if self.settings.compile:
            module = cast(nn.Module, torch.compile(module))
        self.module, *self.optimizers = self.fabric.setup(module, *stage.optimizers)
        self.terms.start(self.progress.iteration)

    def _run_stage(self, stage: Stage) -> None:
        """Update until the end, validating and saving on the way."""
        interval = validation_interval(stage, self.settings)
        state = self.progress
        while True:
            due = state.iteration % interval == 0 or state.iteration == stage.iterations
            if due and state.iteration > max(0, state.validated):
                self._validate(stage)
                self._save(stage)
            if state.stopped or state.iteration >= stage.iterations:
                self._stop_if_asked(stage)  # the next stage has its own handlers
                return
            self._update(stage)
            self._stop_if_asked(stage)

    def _update(self, stage: Stage) -> None:
        """One iteration: an optimizer update per scale."""
        state, settings = self.progress, self.settings
        progress = state.iteration / stage.iterations
        batches = [self._draw(state.stage, stage, state.iteration, micro) for micro in range(settings.accumulate)]
        outputs = []
        for number, scale in enumerate(stage.scales, 1):
            for micro, batch in enumerate(batches):
                self._seed(state.stage, state.iteration, number, micro)
                with self.fabric.no_backward_sync(self.module, enabled=micro + 1 < len(batches)):
                    output = self.module(stage.step, rescaled(batch, scale), progress)
                    self.fabric.backward(output.loss / len(batches))
                outputs.append(StepOutput(output.loss.detach(), output.terms))
            # From the last exchange of an update on, nothing in it can fail for want of another process
            self.processes.average(self.statistics)
            self.processes.share(self.remembered)
            self.settled = None
            self._optimize(stage, progress)
            stage.after_update(progress)
        state.iteration += 1
        self.settled = self._written()
        due = self.terms.add(state.iteration, stage.optimizers[0].param_groups[0]["lr"], outputs)
        if due or state.iteration == stage.iterations:
            self.terms.read(stage.name)

    def _draw(self, number: int, stage: Stage, iteration: int, micro: int) -> Batch:
        at_once = self.processes.world
        position = (iteration * self.settings.accumulate + micro) * at_once + self.processes.rank
        self._seed(number, iteration, 0, micro)
        return stage.augment(self.batches.at(number, stage.batch, position, self.device))

    def _seed(self, stage: int, iteration: int, substep: int, micro: int) -> None:
        seed_everything(self.settings.seed, stage, iteration, substep, micro, self.processes.rank)

    def _optimize(self, stage: Stage, progress: float) -> None:
        factor = stage.schedule(progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
            if stage.clip:
                _clip(optimizer, stage.clip.norm, stage.clip.value)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _validate(self, stage: Stage) -> None:
        state = self.progress
        self.terms.read(stage.name)
        data = self.batches.dataset
        found = Validation({}, {}, {})
        if stage.scored:
            self._measure_norms(stage.measured or stage.scored)
            self.method.eval()  # also what is only watched
            stop = partial(self._stop_if_asked, stage)
            found = validate(stage.scored, data, self.device, stop, self.processes, stage.watched)
        set_trainable(self.method, stage.optimizers)
        state.validated = state.iteration
        scores = found.scores
        if not scores:
            return
        stage.after_validation(scores["dice"])
        state.stale += 1
        if state.best is None or scores["dice"] > state.best:
            state.best, state.stale = scores["dice"], 0
            state.best_file = self.processes.first(lambda: checkpoint.save_best(self.checkpoints, self.method, state))
        state.stopped = bool(self.settings.patience) and state.stale >= cast(int, self.settings.patience)
        self.log.best = state.best
        entry = {"stage": stage.name, "iteration": state.iteration, "validation": scores}
        beside = {"watched": found.watched, "hidden": found.hidden}
        self.log.validation(entry | {name: values for name, values in beside.items() if values}, stage.iterations)

    def _measure_norms(self, network: nn.Module) -> None:
        """What this network's batch norms remember: training images as they are, the same on all processes."""
        norms = training_norms(network)
        if not (self.settings.precise_bn and norms):
            return
        rows = np.sort(np.concatenate([self.batches.labelled, self.batches.others]))
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), MEASURED)).astype(int)]
        data, batches = self.batches.dataset, math.ceil(len(chosen) / 16)
        self.method.eval()
        precise_statistics(
            norms,
            lambda batch: network(batch.image, batch.modality),
            # Strided: rows of one data set or patient lie together, and a batch of them varies less than in training
            (data.batch(chosen[first::batches], self.device) for first in range(batches)),
        )
        if self.settled:
            self.settled = self._written()

    def _written(self) -> list[Tensor]:
        """Copies of the buffers that a forward writes."""
        return [buffer.clone() for buffer in (*self.statistics, *self.remembered)]

    def _kept(self) -> str:
        """In words, what there is to go back to."""
        files = checkpoint.checkpoints(self.checkpoints)
        return f"the checkpoint {files[-1].name} is intact" if files else "nothing had been saved yet"

    def _save(self, stage: Stage) -> None:
        self.terms.read(stage.name)
        self.processes.first(lambda: self._write(stage))

    def _write(self, stage: Stage) -> None:
        self.log.sync()
        checkpoint.save(self.checkpoints, self.method, stage.optimizers, self.progress)

    def _stop_if_asked(self, stage: Stage) -> None:
        """Save and stop where any process got a signal; all ask at the same moments."""
        number = self.processes.largest(self.signals.received or 0)
        if number:
            self._save(stage)
            name = signal.Signals(number).name
            message = f"stopped by {name}; continue with: segdistill train --resume {self.folder}"
            raise self.processes.ending(Interrupted(number, message))

    def _part_from_lost(self, stage: Stage, error: RuntimeError) -> NoReturn:
        """Where another process is lost, save the last whole update if this first one still holds it; and end.

        Not on GPUs: what is queued there waits for the lost one, and the weights with it.
        """
        reason = self.processes.lost(error)
        if reason is None:
            raise error
        if self.processes.rank == 0 and self.device.type == "cpu" and self.settled is not None:
            for buffer, value in zip([*self.statistics, *self.remembered], self.settled, strict=True):
                buffer.copy_(value)
            self.terms.read(stage.name, alone=True)
            self._write(stage)
        if self.processes.local > 0:
            raise SystemExit(1)
        raise Lost(f"{reason}; continue with: segdistill train --resume {self.folder}") from None


def _clip(optimizer: Optimizer, norm: float | None, value: float | None) -> None:
    """Per optimizer: learners that meet only through detach() do not scale each other's gradients."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if norm:
        nn.utils.clip_grad_norm_(parameters, norm)
    if value:
        nn.utils.clip_grad_value_(parameters, value)
