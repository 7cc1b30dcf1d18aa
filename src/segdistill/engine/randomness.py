"""Randomness is a function, not a state: every draw follows from where in the run it happens."""

from __future__ import annotations

import numpy as np
import torch


def seed_everything(*place: int) -> None:
    """Seed torch's generators from a place such as (seed, stage, iteration, sub-step, rank), non-negative integers."""
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
