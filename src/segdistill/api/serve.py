"""serve: a student behind HTTP. From an ONNX file no torch is imported."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..deploy.predictor import open_predictor
from ..deploy.serve.limits import Limits, token_for
from ..deploy.serve.worker import leave
from ..types import UserError
from .terminal import console
from .use import student_path

__all__ = ["leave", "serve"]

LIBRARIES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def serve(
    student: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_bytes: int = Limits.max_bytes,
    max_pixels: int = Limits.max_pixels,
    max_seconds: float = Limits.max_seconds,
    max_waiting: int = Limits.max_waiting,
    device: str = "cpu",
    threads: int | None = None,
) -> None:
    """Answer images with masks, overlays and areas, and show a page to drop them on, until Ctrl-C or SIGTERM.

    Args:
        student: A student's or a run's folder, or an exported file (.onnx, .xml).
        host: Address to listen on; any but this machine's own needs a token.
        port: Port to listen on; 0: a free one.
        token: What clients must show; better set the environment variable SEGDISTILL_TOKEN, which ps does not list.
        max_bytes: Largest image file.
        max_pixels: Largest image, padded where the student pads; larger ones are not decoded.
        max_seconds: Longest time from request to answer.
        max_waiting: Uploads that may wait; further ones are answered 503.
        device: cpu or cuda.
        threads: CPU threads.

    Raises:
        UserError: No student, a host without a token, an address that is taken, or the serve extra is not installed.
    """
    missing = [package for module, package in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}; install with: pip install segdistill[serve]")
    from ..deploy.serve.app import build_app
    from ..deploy.serve.run import listen, make_server, run

    limits, token = Limits(max_bytes, max_pixels, max_seconds, max_waiting), token_for(host, token)
    predictor = open_predictor(student_path(student), device, threads)
    if predictor.card.neighbours:
        raise UserError(f"{student} looks at neighbouring slices, which single images do not have; use predict")
    predictor.predict(np.zeros((*predictor.card.size, 3), np.uint8))  # the first one also allocates
    listening = listen(host, port)
    shown, bound = (f"[{host}]" if ":" in host else host), listening.getsockname()[1]
    console.print(f"{student} at http://{shown}:{bound}/ (Ctrl-C stops)", markup=False, soft_wrap=True)
    with warnings.catch_warnings(action="ignore"):  # of decoders, about the files of others
        run(make_server(build_app(predictor, limits, token), max_seconds), listening)
    console.print("stopped")
