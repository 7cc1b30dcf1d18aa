"""The stages as they will run, and which parameters train in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..transforms.presets import with_flips
from ..types import Batch, Stage
from .settings import Settings

VALIDATIONS = 20  # per stage, unless the user says how often


def planned(stages: Sequence[Stage], settings: Settings, rows: tuple[int, int], world: int = 1) -> list[Stage]:
    """The method's stages, shortened or lengthened as asked, each keeping its share, with the flips asked for.

    Args:
        stages: The method's plan.
        settings: Says iterations or epochs, if anything, and the flips.
        rows: (labelled, other) training rows, to convert epochs.
        world: Processes, each with a batch of its own.
    """
    stages = [replace(stage, augment=with_flips(stage.augment, settings.flips)) for stage in stages]
    wanted = settings.iterations
    if settings.epochs is not None:
        last = stages[-1].batch
        in_epoch, at_once = (rows[0], last[0]) if last[0] else (sum(rows), last[1])
        wanted = max(1, round(settings.epochs * in_epoch / (at_once * settings.accumulate * world)))
    if wanted is None:
        return stages
    total = sum(stage.iterations for stage in stages)
    return [replace(stage, iterations=max(1, round(wanted * stage.iterations / total))) for stage in stages]


def validation_interval(stage: Stage, settings: Settings) -> int:
    """Updates between two validations of this stage."""
    return settings.validate_every or max(1, math.ceil(stage.iterations / VALIDATIONS))


def set_trainable(method: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Hold everything still that no optimizer of the stage trains: requires_grad off, and eval() for its modules."""
    trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    _set_mode(method, trained, inherited=True)


def _set_mode(module: nn.Module, trained: set[int], inherited: bool) -> None:
    """A module trains if a parameter below it does; one without parameters (dropout) does as its parent."""
    parameters = list(module.parameters())
    module.training = any(id(p) in trained for p in parameters) if parameters else inherited
    for child in module.children():
        _set_mode(child, trained, module.training)


def rescaled(batch: Batch, scale: float) -> Batch:
    """The batch at another scale, its sides rounded to a multiple of 32."""
    if scale == 1.0:
        return batch
    size = [max(32, 32 * round(side * scale / 32)) for side in batch.image.shape[-2:]]

    def smooth(image: Tensor) -> Tensor:
        return F.interpolate(image, size, mode="bilinear", antialias=True)

    view = None if batch.view is None else smooth(batch.view)
    mask = F.interpolate(batch.mask[:, None].float(), size, mode="nearest-exact")[:, 0].long()
    return batch._replace(image=smooth(batch.image), view=view, mask=mask)
