"""Work ahead in a thread: while one image is predicted, the next one is read and the last one written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

AHEAD = 1  # results that wait or are worked on, beside the one that was taken: a volume may fill much of the memory

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[Iterator[R]]:
    """`map(function, items)`, computed by one thread in the background; the items are drawn by the caller's thread.

    What the function raises is raised in the place of its result, and no later item is begun. The end of the block
    waits for the call that runs and forgets those that have not begun.
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

    with ThreadPoolExecutor(1) as pool:
        try:
            yield _results(pool, call, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(pool: ThreadPoolExecutor, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        del item  # else it would be kept until the next one is there
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
