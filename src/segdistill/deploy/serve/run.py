"""The server process: a socket, uvicorn, an end without a traceback."""

from __future__ import annotations

import math
import signal
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp

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


def make_server(app: ASGIApp, max_seconds: float) -> uvicorn.Server:
    """A server that logs nothing of a request; started ones have `max_seconds` to end when it is told to stop."""
    config = uvicorn.Config(
        app,
        http="h11",
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
