"""What a request may ask for, and the pictures and tasks that it brings."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what a client sends is said to it, not to the log

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "MPO")  # nothing that runs a program


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many pictures may be under way at once."""

    bytes: int = 32 << 20  # of a request
    pictures: int = 32  # of a request
    pixels: int = 64_000_000  # of a picture
    adapter_bytes: int = 256 << 20
    waiting: int = 64  # pictures times tasks that are under way
    seconds: float = 30.0  # until an answer, and for a body to arrive


class Sent(NamedTuple):
    """A picture as it came."""

    name: str
    content: bytes


class Bounded:
    """Bodies that are too long, or too slow, are refused while they arrive."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.limits.adapter_bytes if scope["method"] == "PUT" else self.limits.bytes
        until = time.monotonic() + self.limits.seconds
        arrived, whole = 0, False

        async def bounded() -> Message:
            nonlocal arrived, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError as error:
                raise HTTPException(
                    408, f"The body took more than {self.limits.seconds:g} seconds to arrive."
                ) from error
            arrived += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if arrived > most:
                raise HTTPException(413, f"The body has more than {most:,} bytes.")
            return message

        await self.app(scope, bounded, send)


async def pictures_of(request: Request, limits: Limits) -> tuple[list[Sent], list[str] | None]:
    """The pictures of a request, and the tasks that it names."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1000, max_fields=1000) as form:
            parts = form.multi_items()
            files = [part for _, part in parts if isinstance(part, UploadFile)]
            sent = [Sent(_shown(part.filename, k), await part.read()) for k, part in enumerate(files)]
        named = [part for key, part in parts if key == "tasks" and isinstance(part, str)]
        names = [name.strip() for of in named for name in of.split(",") if name.strip()] or None
    elif kind == "application/json":
        sent, names = _of_json(await request.body(), limits)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        sent, names = [Sent("picture 1", await request.body())], None
        if asked := request.query_params.getlist("tasks"):
            names = [name for of in asked for name in of.split(",") if name]
    else:
        raise HTTPException(
            415, "Send pictures as multipart/form-data, as base64 in application/json, or one as image/jpeg."
        )
    if not sent or not any(each.content for each in sent):
        raise HTTPException(400, "No picture came: send one or more under the name pictures.")
    if len(sent) > limits.pictures:
        raise HTTPException(413, f"{len(sent)} pictures came, but {limits.pictures} at most: send them in parts.")
    return sent, names


def _of_json(body: bytes, limits: Limits) -> tuple[list[Sent], list[str] | None]:
    try:
        told = json.loads(body)
    except (ValueError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"The body is no JSON ({error}).") from error
    if not isinstance(told, dict):
        raise HTTPException(400, 'The JSON is no object: send {"pictures": ["BASE64", ...]}.')
    pictures, names = told.get("pictures"), told.get("tasks")
    if isinstance(pictures, str):
        pictures = [pictures]
    if isinstance(names, str):
        names = [names]
    if not isinstance(pictures, list) or not all(isinstance(each, str) for each in pictures):
        raise HTTPException(400, "There are no pictures in the JSON: send a list of texts in base64 under pictures.")
    if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
        raise HTTPException(400, "The tasks of the JSON are no list of names.")
    try:
        content = [base64.b64decode(each.partition("base64,")[2] or each, validate=True) for each in pictures]
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"A picture is no base64 ({error}).") from error
    return [Sent(f"picture {k + 1}", each) for k, each in enumerate(content)], names


def _shown(name: str | None, k: int) -> str:
    """The name of a file for people: never a path."""
    return (name or "").replace("\\", "/").rpartition("/")[2][:200] or f"picture {k + 1}"


def check_picture(sent: Sent, limits: Limits) -> None:
    """Looks at the head of a picture before it is decoded."""
    try:
        with Image.open(io.BytesIO(sent.content), formats=_formats()) as image:
            pixels = image.width * image.height
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"{sent.name} has too many pixels.") from error
    except Exception as error:  # decoders meet broken bytes with nearly any error
        raise HTTPException(
            422, f"{sent.name} is no picture that can be read: send JPEG, PNG, WebP or TIFF."
        ) from error
    if pixels > limits.pixels:
        raise HTTPException(413, f"{sent.name} has {pixels:,} pixels, but {limits.pixels:,} at most.")


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
