"""A real server on a free port, a client that sends what no library would, predictors that can be told to wait."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from segdistill.deploy.predictor import Prediction
from segdistill.deploy.serve.app import build_app
from segdistill.deploy.serve.limits import Limits
from segdistill.deploy.serve.run import listen, make_server

BOUNDARY = "a-boundary"


class Bright:
    """The classes are levels of brightness; `wait()` holds every prediction until `go()`."""

    def __init__(self, card) -> None:
        self.card = card
        self.routes = False
        self.calls = 0
        self.entered = threading.Event()
        self._free = threading.Event()
        self._free.set()

    def wait(self) -> None:
        self._free.clear()

    def go(self) -> None:
        self._free.set()

    def predict(self, image, modality=None):
        self.calls += 1
        self.entered.set()
        assert self._free.wait(20)
        count = len(self.card.classes)
        labels = (image[:, :, 0].astype(int) * count // 256).astype(np.uint8)
        return Prediction(labels, np.eye(count, dtype=np.float32)[labels].transpose(2, 0, 1))


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The one message of an error; it has one line and shows no code."""
        values = json.loads(self.body)
        assert list(values) == ["error"]
        assert "\n" not in values["error"]
        assert "Traceback" not in values["error"]
        assert self.headers["content-type"] == "application/json"
        return values["error"]


def form(content: bytes, name: bytes = b"a.png", field: bytes = b"image", **fields: str) -> bytes:
    """The body of a multipart form with one file."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = b'Content-Disposition: form-data; name="' + field + b'"; filename="' + name + b'"\r\n'
    return b"".join([*parts, f"--{BOUNDARY}\r\n".encode(), head, b"\r\n", content, f"\r\n--{BOUNDARY}--\r\n".encode()])


class Client(NamedTuple):
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body=None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, content: bytes, name: bytes = b"a.png", fields=None, **headers: str) -> Reply:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return self.ask("POST", path, form(content, name, **(fields or {})), Content_Type=kind, **headers)

    def raw(self, *lines: str) -> socket.socket:
        """A connection on which these lines of a request's head have been sent, and nothing else."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, f"Host: 127.0.0.1:{self.port}", "")).encode())
        return connection

    def figure(self, name: str) -> float:
        """A value of /metrics; 0 where it is not there yet."""
        text = self.get("/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def until(self, name: str, value: float) -> None:
        """Wait for a value of /metrics."""
        end = time.monotonic() + 10
        while self.figure(name) != value:
            assert time.monotonic() < end, f"{name} did not become {value}"
            time.sleep(0.02)


def reply_on(connection: socket.socket) -> Reply:
    """What comes back on a raw connection."""
    with connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def encoded(array, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=kind)
    return file.getvalue()


@pytest.fixture
def bright(card) -> Bright:
    return Bright(card(4))


@pytest.fixture
def png(image) -> bytes:
    return encoded(image(40, 61))


@pytest.fixture
def start() -> Iterator[Callable[..., Client]]:
    """Serve a predictor until the test ends."""
    running = []

    def start(predictor, token: str | None = None, **limits: float) -> Client:
        limits = Limits(**limits)
        listening = listen("127.0.0.1", 0)
        server = make_server(build_app(predictor, limits, token), limits.max_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((predictor, server, thread, listening))
        end = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        return Client(listening.getsockname()[1])

    yield start
    for predictor, server, thread, listening in running:
        getattr(predictor, "go", lambda: None)()
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()
