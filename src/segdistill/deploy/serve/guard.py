"""Around every request: who may ask, what is counted, and one clear message instead of a traceback.

Nothing is logged but the place in the code of an unforeseen error: its message, like a file's name, may name a patient.
"""

from __future__ import annotations

import hmac
import logging
import time
import traceback
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import is_loopback
from .metrics import Metrics

LOG = logging.getLogger("segdistill.serve")
OPEN = {"/", "/page.css", "/page.js", "/health"}  # hold nothing of the student and need no token
GONE = 499  # in the figures alone: the client left before its answer
HEADERS = (
    (b"cache-control", b"no-store"),  # nor does a browser keep what it was shown
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Every error looks like this."""
    return JSONResponse({"error": message}, status, headers)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics, paths: Collection[str]) -> None:
        self._app = app
        self._token = token
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the start and end of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            await (self._refused(Request(scope)) or self._app)(scope, receive, noted)
        except ClientDisconnect:
            pass
        except Exception as error:
            LOG.error("a request failed: %s at %s", type(error).__name__, _place(error))
            if status != GONE:  # half of an answer is out: only a closed connection says that it is broken
                raise ConnectionAbortedError from None
            await refusal(500, "the server failed on this image; its terminal says where")(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count(path, status, time.perf_counter() - start)

    def _refused(self, request: Request) -> JSONResponse | None:
        """The answer to those who may not ask."""
        if self._token is None:
            if not _from_here(request):
                return refusal(403, "this server answers its own machine and its own page alone; serve with --token")
        elif (
            request.scope["path"] not in OPEN
        ):  # what is routed by; older Starlettes make request.url of the Host header
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode(), self._token.encode())
            if scheme.lower() != "bearer" or not same:
                message = "a token is needed: send the header Authorization: Bearer TOKEN"
                return refusal(401, message, {"WWW-Authenticate": "Bearer"})
        return None


def _from_here(request: Request) -> bool:
    """Whether no other site's page sent the request: neither directly nor under a name that it points to loopback."""
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return False
    return is_loopback(host) and request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
