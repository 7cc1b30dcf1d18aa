"""Which rows a batch holds: a pure function of (seed, stage, iteration, rank), so that a resumed run needs no state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LABELLED, OTHER = 0, 1


@lru_cache(maxsize=16)
def _permutation(length: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(key).permutation(length)


def draw(pool: NDArray[np.int64], count: int, *, position: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """`count` rows of the pool for the position-th draw.

    The draws cut an endless row of seeded permutations of the pool, one per epoch, into pieces: every row comes once
    per epoch, and a pool smaller than `count` cycles. An empty pool gives no rows.

    Args:
        pool: (N,) row numbers.
        count: Rows wanted.
        position: Number of draws before this one, over all processes.
        key: Non-negative integers that seed the permutations.
    """
    if len(pool) == 0:
        return pool
    epoch, offset = np.divmod(np.arange(position * count, (position + 1) * count), len(pool))
    return np.array([pool[_permutation(len(pool), (*key, int(e)))[o]] for e, o in zip(epoch, offset, strict=True)], int)


def batch_rows(
    labelled: NDArray[np.int64],
    others: NDArray[np.int64],
    counts: tuple[int, int],
    *,
    position: int,
    key: tuple[int, ...],
) -> NDArray[np.int64]:
    """Row numbers of one batch: (labelled, other) rows; a batch of (0, n) draws from all training rows."""
    rest = others if counts[0] else np.concatenate([labelled, others])
    return np.concatenate(
        [
            draw(labelled, counts[0], position=position, key=(*key, LABELLED)),
            draw(rest, counts[1], position=position, key=(*key, OTHER)),
        ]
    )
