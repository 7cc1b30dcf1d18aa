"""bf16 or fp32, by measurement: which is faster depends on the machine, the size and the batch."""

from __future__ import annotations

import time

import torch
from torch import nn

from ..types import Batch, Stage, UserError
from .randomness import seed_everything

MINIMUM_GAIN = 1.1  # bf16 must be this much faster to be worth its rounding
TIMED = 3


def resolve_device(name: str) -> str:
    """The name of the accelerator that is used; UserError when it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no GPU on this machine; use --device cpu, or install a CUDA build of torch"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def choose(precision: str, stage: Stage, method: nn.Module, batch: Batch) -> str:
    """`precision` itself, or for "auto" the faster of "32" and "bf16" on a few steps of the stage.

    The method is left as it was: gradients dropped, buffers put back.
    """
    if precision != "auto":
        return precision
    buffers = {name: value.clone() for name, value in method.named_buffers()}
    seconds = {p: _seconds(stage, batch, p) for p in ("32", "bf16", "32", "bf16")}
    method.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in method.named_buffers():
            value.copy_(buffers[name])
    return "bf16" if seconds["bf16"] * MINIMUM_GAIN < seconds["32"] else "32"


def _seconds(stage: Stage, batch: Batch, precision: str) -> float:
    """The fastest of a few forward and backward passes."""
    device = batch.image.device.type
    times = []
    for _ in range(TIMED):
        seed_everything(0)
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = stage.step(stage.augment(batch), 0.5).loss
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
