"""Learning-rate schedules: progress in [0, 1] -> factor in [0, 1]."""

from __future__ import annotations

import math


def warm_up_cosine(progress: float, warm_up: float) -> float:
    """Linear from 0 to 1 over the first `warm_up` share of the progress, then half a cosine down to 0."""
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / max(1e-9, 1 - warm_up)))


def warm_up_linear(progress: float, warm_up: float) -> float:
    """Linear from 0 to 1 over the first `warm_up` share of the progress, then linear down to 0 at the end."""
    if progress < warm_up:
        return progress / warm_up
    return (1 - progress) / max(1e-9, 1 - warm_up)


def exponential(progress: float, final: float) -> float:
    """From 1 to `final`, by the same factor in equal steps."""
    return math.exp(progress * math.log(final))
