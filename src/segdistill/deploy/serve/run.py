"""The server process: a socket, uvicorn, an end without a traceback."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...types import UserError

CONNECTIONS = 128  # more are answered 503 by uvicorn itself, so that idle ones do not eat all file handles


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        UserError: the address is taken, or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port} ({reason}); choose another --host or --port") from None


class HeadInTime(H11Protocol):
    """A connection, which is closed where the head of a request does not come whole within `seconds`.

    Uvicorn waits for it for ever: so many silent clients as there may be connections would shut all others out.
    """

    seconds = 30.0
    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is waited for."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """It may have come, or a later one may have begun."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # a head has come
            self._forget()
        elif self.waiting is None:
            self.waiting = self.loop.call_later(self.seconds, self.transport.close)

    def _forget(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


def make_server(app: ASGIApp, max_seconds: float) -> uvicorn.Server:
    """A server that logs nothing of a request; started ones have `max_seconds` to end when it is told to stop.

    So has the head of a request to arrive.
    """
    config = uvicorn.Config(
        app,
        http=type("Connection", (HeadInTime,), {"seconds": max_seconds}),
        ws="none",
        access_log=False,
        log_level="critical",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(max_seconds),
    )
    return uvicorn.Server(config)


def run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what has begun and return."""

    def ended(number: int, frame: Any) -> None:
        """Uvicorn raises the signal once more when it is done; its default action would look like a crash."""

    before = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with listening:
            server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
