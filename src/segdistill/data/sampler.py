"""Which rows a batch holds: a pure function of (seed, stage, iteration, rank), so that a resumed run needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LABELLED, OTHER = 0, 1
BLOCK = 4096  # places over which the shares of the groups are exact
_BLOCKS, _ROWS = 0, 1  # of the keys of a balanced draw


@lru_cache(maxsize=64)
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


def draw_balanced(
    pools: Sequence[NDArray[np.int64]], count: int, *, balance: float, position: int, key: tuple[int, ...]
) -> NDArray[np.int64]:
    """`count` rows of several pools for the position-th draw; one of n rows has a share ~ n^(1 - balance).

    As in `draw`, an endless row is cut into pieces. Each BLOCK of its places is a seeded permutation of as many places
    per pool as its share says (at least one), so how often a pool was drawn before a place is known without counting;
    within its own places a pool cycles through seeded permutations of its rows.

    Args:
        pools: (N_g,) row numbers of each group, none empty.
        count: Rows wanted.
        balance: 0: as if the pools were one, nearly; 1: every pool equally often.
        position: Number of draws before this one, over all processes.
        key: Non-negative integers that seed the permutations.
    """
    quota = _quota(tuple(len(pool) for pool in pools), balance)
    rows = []
    for place in range(position * count, (position + 1) * count):
        block, offset = divmod(place, BLOCK)
        group, before = (int(part[offset]) for part in _block(quota, (*key, _BLOCKS, block)))
        epoch, number = divmod(block * quota[group] + before, len(pools[group]))
        rows.append(pools[group][_permutation(len(pools[group]), (*key, _ROWS, group, epoch))[number]])
    return np.array(rows, int)


def batch_rows(
    labelled: NDArray[np.int64],
    others: NDArray[np.int64],
    counts: tuple[int, int],
    *,
    position: int,
    key: tuple[int, ...],
    groups: NDArray[np.int64] | None = None,
    balance: float = 0.0,
) -> NDArray[np.int64]:
    """Row numbers of one batch: (labelled, other) rows; a batch of (0, n) draws from all training rows.

    With `groups`, the group of every row by its number, each kind of row is drawn balanced over the groups it has.
    """

    def take(pool: NDArray[np.int64], kind: int) -> NDArray[np.int64]:
        present = np.unique(groups[pool]) if groups is not None else ()
        if groups is None or len(present) < 2:
            return draw(pool, counts[kind], position=position, key=(*key, kind))
        pools = [pool[groups[pool] == group] for group in present]
        return draw_balanced(pools, counts[kind], balance=balance, position=position, key=(*key, kind))

    rest = others if counts[0] else np.concatenate([labelled, others])
    return np.concatenate([take(labelled, LABELLED), take(rest, OTHER)])


@lru_cache(maxsize=64)
def _quota(sizes: tuple[int, ...], balance: float) -> tuple[int, ...]:
    """Places of each pool in a block: one each, the rest by largest remainder."""
    weight = np.array(sizes, float) ** (1 - balance)
    exact = (BLOCK - len(sizes)) * weight / weight.sum()
    quota = np.floor(exact).astype(int)
    first = np.argsort(quota - exact, kind="stable")[: BLOCK - len(sizes) - int(quota.sum())]
    quota[first] += 1
    return tuple(int(places) + 1 for places in quota)


@lru_cache(maxsize=16)
def _block(quota: tuple[int, ...], key: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of each place of a block, and how many places of that group come before it in the block."""
    group = np.repeat(np.arange(len(quota)), quota)[_permutation(BLOCK, key)]
    before = np.empty(BLOCK, np.int64)
    for number in range(len(quota)):
        before[group == number] = np.arange(quota[number])
    return group, before
