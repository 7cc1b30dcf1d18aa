"""The vocabulary: what a method receives and returns, and how it plans its training. Imports no torch at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.optim import Optimizer


class UserError(Exception):
    """Unusable input. One message (what was given, what was needed, the way out), exit code 2, no traceback.

    It is one line, and moves no terminal's cursor, whatever it quotes: a file's name may hold line breaks and escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """What a terminal shows and does not obey: line breaks and escapes as Python writes them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Batch(NamedTuple):
    """B images with what is known of them."""

    image: Tensor  # (B, 3, H, W) float in [0, 1], RGB. Not normalised: each network owns its normalisation
    view: Tensor | None  # (B, 3, H, W) second photometric view of the same geometry, for methods that ask for one
    mask: Tensor  # (B, H, W) long, class index; meaningless where not labelled
    labelled: Tensor  # (B,) bool
    classes: Tensor  # (B, C) bool: classes annotated for this row; the others get no loss and no argmax
    modality: Tensor  # (B,) long
    index: Tensor  # type: ignore[assignment]  # (B,) long, row of the manifest
    supervised: tuple[bool, ...] = ()  # `labelled` as the host knows it, see `known`

    @property
    def known(self) -> tuple[bool, ...]:
        """`labelled` on the host: a method that parts the rows by it need not wait for the device."""
        return self.supervised or tuple(self.labelled.tolist())


class StepOutput(NamedTuple):
    """What a step computed."""

    loss: Tensor  # scalar; the engine calls backward on it, once
    terms: dict[str, Tensor]  # every addend by the paper's name, and weights that data decide, as logged


class Store(NamedTuple):
    """Where a method may keep what it computed of the training images while the run lasts."""

    folder: Path  # in the run's folder
    rows: tuple[int, ...]  # numbers of the training rows (`Batch.index`), ascending
    say: Callable[[str], None]  # one line for the user


class Task(NamedTuple):
    """What a method is built for."""

    classes: int  # background included
    size: tuple[int, int]  # (H, W) of the training images
    modalities: tuple[str, ...]  # Batch.modality indexes it; one empty name when the data say nothing
    labelled: int  # training rows with a mask
    others: int  # training rows without
    # per modality the foreground class indices annotated in it; () where all are
    modality_classes: tuple[tuple[int, ...], ...] = ()
    names: tuple[str, ...] = ()  # of the classes, background first; () where nobody named them
    store: Store | None = None  # none where there is no run
    validated: bool = True  # whether validation scores anything
    fit: str = "squash"  # how images came to `size`
    neighbours: int = 0  # 1: the channels are three slices


class Known(NamedTuple):
    """What a student was trained for that a run starts from: the data's new classes and modalities come after these."""

    classes: tuple[str, ...]  # background first
    modalities: tuple[str, ...]
    size: tuple[int, int]
    fit: str
    neighbours: int
    meanings: tuple[dict[str, Any], ...] = ()  # of mask values, as its card keeps them


@dataclass(frozen=True)
class Clip:
    """Gradient clipping, per optimizer: by the norm of its gradients, or element-wise by value; 0 or None: not."""

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
    measured: nn.Module | None = None  # whose batch norms are measured before that; None: the scored one's
    scales: tuple[float, ...] = (1.0,)  # one update per scale, sizes rounded to a multiple of 32
    schedule: Callable[[float], float] = constant  # progress -> factor on every learning rate
    clip: Clip | None = None
    prepare: Callable[[], None] = nothing  # once at the start of the stage; before a resume loads the checkpoint
    after_update: Callable[[float], None] = nothing  # once per optimizer update (EMA; buffers copied)
    after_validation: Callable[[float], None] = nothing  # with the mean Dice; what it keeps belongs into a buffer
    # (image (B, 3, H, W), modality (B,)) -> other predictions by name, logits (B, C, H, W), whose Dice each validation
    # logs beside the scored one; called in eval mode under inference_mode. It decides nothing. The scored network's own
    # logits, where it has them anyway, save that network's pass: under "student"
    watched: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None


class Remarks(NamedTuple):
    """What a method has to say in the report."""

    sentences: tuple[str, ...]  # plain text, one statement each
    pictures: tuple[tuple[str, NDArray[np.uint8]], ...]  # (caption, RGB (H, W, 3))


class Method(Protocol):
    """A paper. Methods subclass nn.Module and nothing else.

    Optional, looked for when the training is over, with the best weights in place, on the CPU, in eval mode:

    `require(config) -> config`, static: raises UserError for what the config names and is not there, before a run
    exists; returns it with absolute paths, so that the run resumes from any folder.

    `known(config) -> Known | None`, static: what a student knows to which the run adds a modality.

    `students: Mapping[str, nn.Module]`: other networks that may be shipped, each made by `build_student`. They become
    `RUN/students/NAME` and are scored as the student is.

    `remarks(log: Sequence[Mapping[str, Any]], batch: Batch) -> Remarks`: words and pictures for the report; `log` are
    the lines of log.jsonl, `batch` a few training rows, not augmented. Called under inference_mode.
    """

    student: nn.Module  # (image, modality=None) -> logits; all that evaluate, predict and export ever see

    def stages(self) -> list[Stage]:
        """The training plan."""
        ...
