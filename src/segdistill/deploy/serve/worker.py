"""One thread that computes, and a bounded number of places for those who wait. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
THREAD = "predict"  # its name
LAST = 1.0  # seconds that a job which nobody hears any more may take to end by itself


class Busy(Exception):  # noqa: N818
    """All places are taken; `seconds` is when one is likely to be free."""

    def __init__(self, seconds: int) -> None:
        super().__init__("all places are taken")
        self.seconds = seconds


class Worker:
    """A network runs best alone, so jobs run one by one. All but the thread's job belongs to one event loop.

    A place is taken before an upload is read, so that memory is bounded by places, not by clients.
    """

    def __init__(self, waiting: int) -> None:
        self.places = 1 + waiting
        self.taken = 0
        self._thread = ThreadPoolExecutor(1, THREAD)
        self._seconds = 1.0  # the last job took

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place; raises Busy where there is none."""
        if self.taken >= self.places:
            raise Busy(max(1, math.ceil(self.taken * self._seconds)))
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def start(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """The job's result to come. Cancelling it before its turn drops the job; a running one ends unheard."""
        held = [job]
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._timed, held)
        # The thread's queue keeps what was cancelled until its turn; it must not keep the job, which holds an upload
        future.add_done_callback(lambda _: held.clear())
        return future

    def close(self) -> None:
        """Drop what waits, let the running job end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _timed(self, held: list[Callable[[], T]]) -> T:
        start = time.perf_counter()
        try:
            return held.pop()()
        finally:
            self._seconds = time.perf_counter() - start


def leave() -> None:
    """End the process, with exit code 0, if a job still runs after the server's end.

    All clients were answered or are gone. A decoder or an engine cannot be stopped from outside, and Python would wait
    for its thread, however long that takes. `os._exit`: nothing is left to be cleaned up, and an engine must not be
    taken apart while it computes.
    """
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD):
            thread.join(LAST)
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
