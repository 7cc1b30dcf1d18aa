"""Batch norm: normalising by the batch without remembering it, and remembering what the network is now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def untracked_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training use the batch's statistics and leave their running ones as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def normalised_apart(
    network: nn.Module, forward: Callable[[Tensor | slice], tuple[Tensor, ...]], labelled: Tensor, known: int
) -> tuple[Tensor, ...]:
    """Labelled and other rows, each normalised by its own kind; only the labelled ones are remembered.

    In one batch the others shift what the labelled ones are normalised by, and the network learns less of its masks
    (docs/results.md).

    Args:
        network: Whose batch norms these are.
        forward: Numbers of rows, or a slice of all -> their outputs, each (rows, ...).
        labelled: (B,) bool.
        known: Number of labelled rows, as the host knows it.

    Returns:
        The outputs in the order of the batch.
    """
    order = (~labelled).long().argsort(stable=True)
    if known in (0, len(order)):
        return forward(slice(None))
    first = forward(order[:known])
    with untracked_statistics(network):
        parts = zip(first, forward(order[known:]), strict=True)
    back = order.argsort()
    return tuple(torch.cat(pair)[back] for pair in parts)


def training_norms(module: nn.Module) -> list[_BatchNorm]:
    """Its batch norms that training moves: those that remember, and are not held still."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]


def precise_statistics(norms: list[_BatchNorm], forward: Callable[[Any], Any], batches: Iterable[Any]) -> None:
    """Let batch norms remember the plain mean of the batches' statistics under the weights as they are.

    Moving averages lag behind the weights, and remember activations that dropout has made larger. PreciseBN (Wu &
    Johnson 2021, arXiv 2105.07576).

    Args:
        norms: Left in eval mode.
        forward: Of the network, in eval mode, so without dropout.
        batches: What it is called with, one after the other.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
