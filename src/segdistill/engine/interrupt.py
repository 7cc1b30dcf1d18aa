"""SIGTERM and Ctrl-C end a run within one update, with a checkpoint; other work, with nothing half written left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Interrupted(Exception):  # noqa: N818
    """The run was asked to stop and has saved itself; `exit_code` is the shell's 128 + signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """While entered, the first SIGTERM or SIGINT is remembered in `received`; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, signal.Handlers | object] = {}

    def __enter__(self) -> StopSignals:
        try:
            self._before = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: Python delivers no signals here
            self._before = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """SIGTERM raises `Interrupted` in the block, once, as Ctrl-C raises KeyboardInterrupt: the work cleans up."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before)  # a second one acts as usual
        raise Interrupted(number, "stopped")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: Python delivers no signals here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
