"""The vocabulary: what a method receives and returns, and how it plans its training. Imports no torch at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class UserError(Exception):
    """Unusable input. One message (what was given, what was needed, the way out), exit code 2, no traceback."""


class Batch(NamedTuple):
    """B images with what is known of them."""

    image: Tensor  # (B, 3, H, W) float in [0, 1], RGB. Not normalised: each network owns its normalisation
    view: Tensor | None  # (B, 3, H, W) second photometric view of the same geometry, for methods that ask for one
    mask: Tensor  # (B, H, W) long, class index; meaningless where not labelled
    labelled: Tensor  # (B,) bool
    classes: Tensor  # (B, C) bool: classes annotated for this row; the others get no loss and no argmax
    modality: Tensor  # (B,) long
    index: Tensor  # type: ignore[assignment]  # (B,) long, row of the manifest


class StepOutput(NamedTuple):
    """What a step computed."""

    loss: Tensor  # scalar; the engine calls backward on it, once
    terms: dict[str, Tensor]  # every addend, by the paper's name, as logged


class Task(NamedTuple):
    """What a method is built for."""

    classes: int  # background included
    size: tuple[int, int]  # (H, W) of the training images
    modalities: tuple[str, ...]  # Batch.modality indexes it; one empty name when the data say nothing
    labelled: int  # training rows with a mask
    others: int  # training rows without
    modality_classes: tuple[tuple[int, ...], ...] = ()  # per modality, classes annotated in it; (): all in each


@dataclass(frozen=True)
class Clip:
    """Gradient clipping, per optimizer: by the norm of its gradients, or element-wise by value."""

    norm: float | None = None
    value: float | None = None


def constant(progress: float) -> float:
    """A schedule that leaves the learning rate as it is."""
    return 1.0


def nothing(progress: float = 0.0) -> None:
    """A hook that does nothing."""


@dataclass(frozen=True)
class Stage:
    """One part of a method's training plan."""

    name: str
    step: Callable[[Batch, float], StepOutput]  # (batch, progress in [0, 1]); repeatable
    optimizers: list[Optimizer]  # a parameter trains in a stage iff one of these holds it
    iterations: int
    batch: tuple[int, int]  # labelled rows, other rows; (0, n) draws from all training rows
    augment: Callable[[Batch], Batch]
    scored: nn.Module | None  # what validation scores; None: nothing to score, keep the last weights
    scales: tuple[float, ...] = (1.0,)  # one update per scale, sizes rounded to a multiple of 32
    schedule: Callable[[float], float] = constant  # progress -> factor on every learning rate
    clip: Clip | None = None
    prepare: Callable[[], None] = nothing  # once at the start of the stage; before a resume loads the checkpoint
    after_update: Callable[[float], None] = nothing  # once per optimizer update (EMA; buffers copied)


class Method(Protocol):
    """A paper. Methods subclass nn.Module and nothing else."""

    student: nn.Module  # (image, modality=None) -> logits; all that evaluate, predict and export ever see

    def stages(self) -> list[Stage]:
        """The training plan."""
        ...
