"""Several images at once, each by a thread of its own with its share of the cores.

A network leaves cores idle in its small layers, and so do reading and writing; another image fills them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

MOST = 4  # images at once: the memory that each takes adds up, and a volume may fill much of it
ON_GPU = 2  # there: one is computed while another is read or written

T = TypeVar("T")
R = TypeVar("R")


def shares(threads: int | None, images: int, most: int = MOST) -> tuple[int, int | None]:
    """How many of these images at once, and how many threads of all (None: the cores) for each; None: all."""
    cores = threads or os.cpu_count() or 1
    workers = max(1, min(most, cores, images))
    return workers, threads if workers == 1 else cores // workers


@contextmanager
def side_by_side(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[Iterator[R]]:
    """`map(function, items)` by so many threads, in order; the items are drawn by the caller's thread.

    No more items are drawn than threads, and one that waits. What the function raises is raised in the place of its
    result, and no later item is begun. The end of the block waits for the calls that run and forgets the others.
    """
    failed = Event()

    def call(item: T) -> R:
        if failed.is_set():
            raise CancelledError  # the caller meets the earlier exception
        try:
            return function(item)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield _results(pool, call, items, workers)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(pool: ThreadPoolExecutor, call: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        del item  # else it would be kept until the next one is there
        if len(waiting) > workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
