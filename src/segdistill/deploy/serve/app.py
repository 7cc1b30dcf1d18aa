"""The web application: its routes, and how a request becomes a job of the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ...types import UserError
from ..predictor import Predictor
from .answers import ANSWERS, Answer, predict_upload
from .guard import Guard, refusal
from .limits import Limits
from .metrics import Metrics
from .upload import limited, read_upload
from .worker import Busy, Worker

T = TypeVar("T")
PATIENCE = 5.0  # seconds that an upload which is refused anyhow may take
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "spacing": {"type": "string", "description": "mm per pixel: one number, or rows,columns"},
                    },
                }
            }
        },
    }
}


def build_app(predictor: Predictor, limits: Limits, token: str | None = None) -> FastAPI:
    """The application of one student; `token` is of `token_for`."""
    service = Service(predictor, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.worker.close()

    # The documentation pages load scripts from elsewhere; openapi.json says the same.
    app = FastAPI(title="segdistill", docs_url=None, redoc_url=None, lifespan=lifespan)
    for path, answer in ANSWERS.items():
        app.add_api_route(
            path, service.answer, methods=["POST"], openapi_extra=BODY, summary=answer.__doc__, name=path[1:]
        )
    for path, endpoint in {"/model": service.model, "/health": service.health, "/metrics": service.figures}.items():
        app.add_api_route(path, endpoint, methods=["GET"])
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    for path in FILES:
        app.add_api_route(path, file, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(Busy, service.busy)
    paths = {*ANSWERS, *FILES, "/model", "/health", "/metrics", "/openapi.json"}
    app.add_middleware(Guard, token=token, metrics=service.metrics, paths=paths)
    return app


class Service:
    """What the routes share."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits
        self.worker = Worker(limits.max_waiting)
        self.metrics = Metrics(self.worker)

    async def answer(self, request: Request) -> Response:
        """Any route of ANSWERS."""
        make = ANSWERS[request.scope["route"].path]
        limits, end = self.limits, asyncio.get_running_loop().time() + self.limits.max_seconds
        with self.worker.place():
            upload = await _until(end, read_upload(request, limits.max_bytes), 408, "the upload took too long")

            def job() -> Answer:
                return make(predict_upload(self.predictor, upload.content, upload.spacing, limits.max_pixels))

            late = "the image was not done in time; try again later or send a smaller one"
            body, kind = await _until(end, _unless_gone(request, self.worker.start(job)), 504, late)
        return Response(body, media_type=kind)

    async def busy(self, request: Request, error: Exception) -> Response:
        """The upload is heard out, and forgotten: who still sends would find the connection broken, and no answer."""
        assert isinstance(error, Busy)
        with suppress(TimeoutError, HTTPException, ClientDisconnect):
            async with asyncio.timeout(min(PATIENCE, self.limits.max_seconds)):
                async for _ in limited(request, self.limits.max_bytes):
                    pass
        message = f"the server is busy; try again in {error.seconds} s"
        return refusal(503, message, {"Retry-After": str(error.seconds)})

    async def model(self) -> dict[str, Any]:
        """What the page shows of the student, and what it may send."""
        card = self.predictor.card
        classes = [{"name": n, "colour": c} for n, c in zip(card.classes, card.colours, strict=True)]
        limits = {"bytes": self.limits.max_bytes, "pixels": self.limits.max_pixels}
        return {"name": card.name, "method": card.method, "licence": card.licence, "classes": classes, "limits": limits}

    async def health(self) -> dict[str, str]:
        """Whether requests are taken."""
        return {"status": "ok"}

    async def figures(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")


async def file(request: Request) -> Response:
    """A part of the page."""
    name, kind = FILES[request.scope["route"].path]
    return Response((resources.files(__package__) / name).read_bytes(), media_type=kind)


async def _until(end: float, work: Awaitable[T], status: int, message: str) -> T:
    """The work's result; raises HTTPException with this status once the loop's clock shows `end`."""
    try:
        async with asyncio.timeout_at(end):
            return await work
    except TimeoutError:
        raise HTTPException(status, message) from None


async def _gone(request: Request) -> None:
    """Returns when the client closes its connection; of its request nothing is left to come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(request: Request, job: asyncio.Future[T]) -> T:
    """The job's result; the job is dropped when the client leaves or its time is up."""
    gone = asyncio.ensure_future(_gone(request))
    either: list[asyncio.Future[Any]] = [job, gone]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    finally:
        gone.cancel()
        job.cancel()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    routing = {404: "there is nothing here", 405: "this path is not asked in this way"}.get(error.status_code)
    message = f"{routing}; POST an image to one of {', '.join(ANSWERS)}" if routing else error.detail
    return refusal(error.status_code, message, dict(error.headers or {}))


async def _user_error(request: Request, error: Exception) -> Response:
    return refusal(422, str(error))
