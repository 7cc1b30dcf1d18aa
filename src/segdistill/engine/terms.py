"""The terms of the last updates: read from the device a few at a time, checked, and logged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..types import StepOutput, UserError
from .logging import RunLog
from .processes import Processes

FLUSH = 10  # updates between two reads: each waits for the device


class Terms:
    """Waiting terms; a loss that is not finite ends the run where it is read."""

    def __init__(self, log: RunLog, processes: Processes, kept: Callable[[], str]) -> None:
        self.log, self.processes, self.kept = log, processes, kept  # what is kept if the run ends, in words
        self.waiting: list[tuple[int, float, StepOutput]] = []
        # Several processes on the CPU log at once: what waits when one of them dies lacks its share
        self.most = FLUSH if processes.world == 1 or torch.device(processes.device).type == "cuda" else 1
        self.start(0)

    def start(self, iteration: int) -> None:
        """The rate that is shown counts from here."""
        self._clock = (time.perf_counter(), iteration)

    def add(self, iteration: int, learning_rate: float, outputs: list[StepOutput]) -> bool:
        """An update's sub-steps, by their mean; whether it is time to read."""
        self.waiting.append((iteration, learning_rate, _mean(outputs)))
        return len(self.waiting) >= self.most

    def read(self, stage: str, *, alone: bool = False) -> None:
        """Log what waits: the mean of all processes, or this one's.

        Raises:
            UserError: A loss that is not finite.
        """
        if self.waiting:
            since, counted = self._clock
            rate = (self.waiting[-1][0] - counted) / max(1e-9, time.perf_counter() - since)
        mine = [{"loss": float(o.loss), **{k: float(v) for k, v in o.terms.items()}} for _, _, o in self.waiting]
        shares = [mine] if alone else self.processes.gather(mine)
        for (iteration, learning_rate, _), *values in zip(self.waiting, *shares, strict=True):
            terms = _mean_terms(values)
            loss = terms.pop("loss")
            if not math.isfinite(loss):
                raise self.processes.ending(self._refusal(stage, iteration, terms))
            entry = {"stage": stage, "iteration": iteration, "loss": loss, "lr": learning_rate, "terms": terms}
            self.log.training(entry, rate)
        self.waiting.clear()

    def _refusal(self, stage: str, iteration: int, terms: dict[str, float]) -> UserError:
        bad = ", ".join(f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)) or "the sum"
        return UserError(
            f"{stage}, iteration {iteration}: the loss is not finite ({bad}); {self.kept()}. "
            "Lower the learning rate, or use --precision 32"
        )


def _mean(outputs: list[StepOutput]) -> StepOutput:
    """Mean over the sub-steps of an iteration."""

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean() if len(values) > 1 else values[0]

    terms = {name: mean([o.terms[name] for o in outputs]) for name in outputs[0].terms}
    return StepOutput(mean([o.loss for o in outputs]), terms)


def _mean_terms(values: list[dict[str, float]]) -> dict[str, float]:
    """Mean over the processes that have the term."""
    names = dict.fromkeys(name for terms in values for name in terms)
    shares = {name: [terms[name] for terms in values if name in terms] for name in names}
    return {name: sum(share) / len(share) for name, share in shares.items()}
