"""An image out of a form, in memory: never on disk, never larger than allowed. Its file name is not looked at."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .answers import Spacing, read_spacing

FORM = "send the image as the field 'image' of a multipart form, as in: curl -F image=@FILE URL"
OVERHEAD = 10_000  # bytes of a form around its image


class Upload(NamedTuple):
    """What was sent."""

    content: bytes
    spacing: Spacing | None


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """The file `image` and, where given, the field `spacing` of a form.

    Raises:
        HTTPException: another kind of request (415), another form (400), more than `max_bytes` (413; nothing is read
            where the headers say so).
        UserError: an unusable spacing.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, FORM)
    if int(request.headers.get("content-length", "0")) > max_bytes + OVERHEAD:  # digits: the server has seen to it
        raise _too_large(max_bytes)
    form = await _read_form(request, max_bytes)
    try:
        image, spacing = form.get("image"), form.get("spacing", "")
        if not isinstance(image, UploadFile) or not isinstance(spacing, str):
            raise HTTPException(400, f"no image in the form; {FORM}")
        content = await image.read()
    finally:
        await form.close()
    if len(content) > max_bytes:
        raise _too_large(max_bytes)
    return Upload(content, read_spacing(spacing))


async def _read_form(request: Request, max_bytes: int) -> FormData:
    stream = limited(request, max_bytes)
    parser = MultiPartParser(request.headers, stream, max_files=1, max_fields=1, max_part_size=OVERHEAD)
    parser.spool_max_size = 2 * (max_bytes + OVERHEAD)  # more than can come: beyond it a file on disk would be used
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read ({error.message}); {FORM}") from None


async def limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, up to the limit, whatever its headers said."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes + OVERHEAD:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the upload is too large; an image may have {max_bytes:,} bytes: shrink or crop it")
