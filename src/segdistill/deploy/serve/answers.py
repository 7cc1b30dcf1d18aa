"""What goes back for one image: its mask, overlay, areas, or all that the page shows. Knows nothing of HTTP."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats import jpeg_of_image, png_of_image, png_of_labels, read_raster_bytes, resize_image, resize_labels
from ...formats.overlay import overlay
from ...types import UserError
from ..card import Card
from ..predictor import Predictor, require_paddable
from ..routing import Route, route_of
from ..slices import predict_slices

NAME = "the image"  # of an upload in messages: its own name may name a patient
PREVIEW = 1280  # longest side of what the page draws, in pixels

Spacing = tuple[float, float]  # mm, (rows, columns)


class Answer(NamedTuple):
    """The body of a response and its media type."""

    body: bytes
    kind: str


class Predicted(NamedTuple):
    """What an answer is made of."""

    image: NDArray[np.uint8]  # (H, W, 3), as the network saw it
    labels: NDArray[np.uint8]  # (H, W)
    card: Card
    spacing: Spacing | None
    route: Route | None = None  # which modality it was taken for, by a student that tells them apart


def predict_upload(predictor: Predictor, content: bytes, spacing: Spacing | None, max_pixels: int) -> Predicted:
    """Decode and predict a file held in memory, as `predict_files` does it.

    Raises:
        UserError: no image, a damaged one, or one of more than `max_pixels`, which are not decoded, or one that
            the student would pad to more.
    """
    image = read_raster_bytes(content, NAME, max_pixels)
    require_paddable(image, predictor.card, max_pixels)
    found = predict_slices(predictor, image[None])
    route = route_of(predictor, NAME, found.routing, None) if predictor.routes else None
    return Predicted(image, found.labels[0], predictor.card, spacing, route)


def mask(done: Predicted) -> Answer:
    """The very bytes of the PNG that `segdistill predict` writes."""
    return Answer(png_of_labels(done.labels, done.card.colours), "image/png")


def drawn(done: Predicted) -> Answer:
    """The image with its classes in colour, as PNG."""
    return Answer(png_of_image(overlay(done.image, done.labels, done.card.colours)), "image/png")


def areas(done: Predicted) -> Answer:
    """Size of the image and, per class, pixels, fraction and mm2 (null where no spacing was given), as JSON.

    Of a student that tells modalities apart also which one it took the image for, and how sure it is.
    """
    return _json(_areas(done))


def view(done: Predicted) -> Answer:
    """Areas, mask and a preview to draw on: a JPEG and its labels, a zlib stream of one byte per pixel; as JSON."""
    height, width = done.labels.shape
    shrink = min(1.0, PREVIEW / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    preview = {
        "height": size[0],
        "width": size[1],
        "image": _text(jpeg_of_image(resize_image(done.image, size, "squash"))),
        "labels": _text(zlib.compress(resize_labels(done.labels, size, "squash").tobytes())),
    }
    return _json({**_areas(done), "mask": _text(mask(done).body), "preview": preview})


ANSWERS: dict[str, Callable[[Predicted], Answer]] = {
    "/mask": mask,
    "/overlay": drawn,
    "/areas": areas,
    "/view": view,
}


def read_spacing(text: str) -> Spacing | None:
    """Millimetres per pixel: "0.5", or "0.5,0.4" for rows and columns; "" is unknown.

    Raises:
        UserError: anything else.
    """
    if not text.strip():
        return None
    try:
        sides = [float(part) for part in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(math.isfinite(side) and 0 < side < 1e6 for side in sides):
        raise UserError("spacing is not a size in mm; give one number, or rows,columns as in 0.5,0.4")
    return sides[0], sides[-1]


def _areas(done: Predicted) -> dict[str, Any]:
    pixels = np.bincount(done.labels.ravel(), minlength=len(done.card.classes)).tolist()
    pixel = math.prod(done.spacing) if done.spacing else None
    route = done.route
    modality = {"name": route.modality, "confidence": route.confidence, "decided_by": route.decided_by} if route else {}
    return ({"modality": modality} if modality else {}) | {
        "height": done.labels.shape[0],
        "width": done.labels.shape[1],
        "classes": [
            {
                "index": index,
                "name": name,
                "pixels": count,
                "fraction": round(count / done.labels.size, 6),
                "mm2": None if pixel is None else float(f"{count * pixel:.6g}"),
            }
            for index, (name, count) in enumerate(zip(done.card.classes, pixels, strict=True))
        ],
    }


def _json(values: dict[str, Any]) -> Answer:
    return Answer(json.dumps(values, ensure_ascii=False, allow_nan=False).encode(), "application/json")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
