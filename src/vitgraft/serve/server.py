"""A bank behind HTTP: FastAPI and uvicorn.

POST /v1/tasks/NAME/predict   pictures, as multipart files or base64 in JSON, to one task
POST /v1/predict              to several tasks, or all
GET  /v1/tasks                what there is and what it costs
PUT, DELETE /v1/tasks/NAME    an adapter uploaded or dropped, with the token
GET  /, /health, /metrics, /docs

What cannot be answered now is refused at once (429 with Retry-After): there is no queue that grows without end. What a
client does wrong is answered with one sentence under "error".
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import io
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..common.errors import RequestError, VitgraftError
from ..pages import page
from .shelf import NAME
from .stored import Stored

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what a client sends is said to it, not to the log

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "MPO")  # nothing that runs a program
SIZES = (1, 2, 4, 8, 16, 32, 64)


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


def create(stored: Stored, limits: Limits | None = None, token: str = "") -> FastAPI:
    """The application. token: what PUT and DELETE have to bring as `Authorization: Bearer TOKEN`; without one nothing
    can be changed."""
    limits = limits or Limits()
    bank = stored.bank
    backbone = bank.backbone.name.partition("=")[0].replace("\\", "/").rpartition("/")[2]  # no path of the server
    work = Work(stored, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(work.close)

    app = FastAPI(
        title="vitgraft",
        summary=f"Many tasks on one backbone, {backbone}.",
        version=version("vitgraft"),
        lifespan=lifespan,
    )
    app.add_middleware(Bounded, limits=limits)

    def refused(status: int, text: str, **headers: str) -> JSONResponse:
        work.refused.labels(str(status)).inc()
        return JSONResponse({"error": text}, status, headers)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        text = error.detail if error.status_code != 404 or error.detail != "Not Found" else _nowhere(request)
        return refused(error.status_code, str(text), **(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return refused(422, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()))

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, error: ClientDisconnect) -> Response:
        return refused(400, "The request was cut off: send it whole.")

    @app.exception_handler(RecursionError)
    async def _deep(request: Request, error: RecursionError) -> Response:
        return refused(400, "The JSON is nested too deeply: send pictures and tasks.")

    @app.exception_handler(VitgraftError)
    async def _sentence(request: Request, error: VitgraftError) -> Response:
        return refused(422, str(error))

    texts = {"type": "array", "items": {"type": "string"}}
    body = {
        "required": True,
        "content": {
            kind: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "pictures": {"type": "array", "items": {"type": "string", "format": form}},
                        "tasks": texts,
                    },
                    "required": ["pictures"],
                }
            }
            for kind, form in (("multipart/form-data", "binary"), ("application/json", "byte"))
        },
    }

    @app.post("/v1/tasks/{name}/predict", openapi_extra={"requestBody": body})
    async def predict(name: str, request: Request, draw: bool = False) -> Any:
        """What one task says of each picture."""
        _known(bank, name)
        sent, _ = await _pictures(request, limits)
        began = time.perf_counter()
        found = await work.ask(sent, [name], draw)
        return {"task": name, "predictions": [_one(of, name) for of in found], "milliseconds": _since(began)}

    @app.post("/v1/predict", openapi_extra={"requestBody": body})
    async def predict_several(request: Request, draw: bool = False) -> Any:
        """What several tasks say of each picture; all of them, where `tasks` is left out."""
        sent, names = await _pictures(request, limits)
        for name in names or ():
            _known(bank, name)
        began = time.perf_counter()
        found = await work.ask(sent, list(dict.fromkeys(names or bank.tasks)), draw)
        return {"predictions": found, "milliseconds": _since(began)}

    @app.get("/v1/tasks")
    async def tasks() -> Any:
        """The tasks, with what each costs."""
        return {"backbone": backbone, "tasks": await run_in_threadpool(bank.table)}

    @app.get("/v1/tasks/{name}")
    async def task(name: str) -> Any:
        """One task, with its classes and how it was fitted."""
        _known(bank, name)
        header = bank.header(name)
        told = ("task", "method", "arguments", "classes", "head", "preprocess", "metrics", "versions")
        return {"name": name, "backbone": backbone, **{key: header[key] for key in told if key in header}}

    def allowed(request: Request) -> None:
        if not token:
            raise HTTPException(403, "This server takes no adapters: start it with a token.")
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "The token is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    @app.put(
        "/v1/tasks/{name}",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def put(name: str, request: Request) -> Any:
        """An adapter file as the body: a new task, or another adapter for one."""
        allowed(request)
        if not NAME.fullmatch(name):
            raise HTTPException(400, f"{name!r:.80} is no name of a task: take letters, digits, dots and hyphens.")
        new = await work.change(stored.put, name, await request.body())
        return JSONResponse({"name": name, "new": new}, 201 if new else 200)

    @app.delete("/v1/tasks/{name}")
    async def drop(name: str, request: Request) -> Any:
        """A task less."""
        allowed(request)
        _known(bank, name)
        await work.change(stored.drop, name)
        return {"name": name, "dropped": True}

    @app.get("/health")
    async def health() -> Any:
        """That it answers, and how much is under way."""
        return {"status": "ok", "tasks": len(bank), "waiting": work.waiting}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(work.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        nonce = secrets.token_urlsafe(16)
        text = page.rendered("serve.html", backbone=backbone, nonce=nonce)
        return HTMLResponse(text, headers={"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})

    return app


class Work:
    """What a server has under way: counted, bounded, and done off the loop."""

    def __init__(self, stored: Stored, limits: Limits) -> None:
        self.stored, self.limits = stored, limits
        self.waiting = 0
        self._each = 0.05  # seconds that a picture and a task take, of late
        # As many threads as may wait, since each waits in one; decoding is what keeps the processor busy in them.
        self._threads = ThreadPoolExecutor(min(limits.waiting, 32), "vitgraft-serve")
        self._changing, self._lock = asyncio.Lock(), threading.Lock()
        self.registry = CollectorRegistry()
        self.latency = Histogram(
            "vitgraft_latency_seconds",
            "From a request that has arrived to its answer.",
            ["tasks"],
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.answered = Counter("vitgraft_answers", "Pictures answered.", ["task"], registry=self.registry)
        self.refused = Counter("vitgraft_refusals", "Requests refused, by status.", ["status"], registry=self.registry)
        gauge = Gauge("vitgraft_waiting", "Pictures times tasks under way.", registry=self.registry)
        gauge.set_function(lambda: self.waiting)
        self.registry.register(_Batches(stored))

    def close(self) -> None:
        """Answers what was taken."""
        self._threads.shutdown()
        self.stored.close()

    async def change(self, do: Callable[..., Any], *given: Any) -> Any:
        """One change of the bank after the other."""
        async with self._changing:
            return await run_in_threadpool(_sentences, do, *given)

    async def ask(self, sent: list[Sent], names: list[str], draw: bool) -> list[dict[str, Any]]:
        """What the tasks say of each picture; 429 where too much is under way, 504 where it takes too long."""
        if not names:
            raise HTTPException(404, "The bank holds no task yet: put one into it.")
        cost = len(sent) * len(names)
        if cost > self.limits.waiting:
            most = self.limits.waiting
            raise HTTPException(
                413, f"{len(sent)} pictures times {len(names)} tasks are more than {most}: ask in parts."
            )
        with self._lock:
            if self.waiting + cost > self.limits.waiting:
                again = {"Retry-After": str(max(1, math.ceil(self.waiting * self._each)))}
                raise HTTPException(429, f"{self.waiting} questions are under way: ask again later.", again)
            self.waiting += cost
        began = time.perf_counter()
        doing = self._threads.submit(self._answer, sent, names, draw)
        doing.add_done_callback(lambda _: self._done(cost, began))
        try:
            found = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(doing)), self.limits.seconds)
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"No answer within {self.limits.seconds:g} seconds: ask again later.") from error
        self.latency.labels("1" if len(names) == 1 else "several").observe(time.perf_counter() - began)
        for name in names:
            self.answered.labels(name).inc(len(sent))
        return found

    def _done(self, cost: int, began: float) -> None:
        with self._lock:
            self._each += 0.1 * ((time.perf_counter() - began) / self.waiting - self._each)
            self.waiting -= cost

    def _answer(self, sent: list[Sent], names: list[str], draw: bool) -> list[dict[str, Any]]:
        for each in sent:
            _check_picture(each, self.limits)
        found = self.stored.answer([each.content for each in sent], [each.name for each in sent], names, draw)
        return [{"picture": each.name, "tasks": of} for each, of in zip(sent, found, strict=True)]


class _Batches:
    """How many pictures passed the backbone at once, as a histogram of Prometheus."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    def collect(self) -> Any:
        passes = dict(self._stored.bank.passes)
        family = HistogramMetricFamily("vitgraft_batch_size", "Places of a batch that were filled, of each pass.")
        buckets = [(str(size), float(sum(n for of, n in passes.items() if of <= size))) for size in SIZES]
        family.add_metric(
            [], [*buckets, ("+Inf", float(sum(passes.values())))], sum(of * n for of, n in passes.items())
        )
        yield family


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


def _known(bank: Any, name: str) -> None:
    if name not in bank:
        raise HTTPException(404, f"There is no task {name!r:.120}: GET /v1/tasks lists those that there are.")


def _nowhere(request: Request) -> str:
    return f"There is nothing at {request.url.path[:200]!r}: see /docs."


async def _pictures(request: Request, limits: Limits) -> tuple[list[Sent], list[str] | None]:
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


def _check_picture(sent: Sent, limits: Limits) -> None:
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


def _one(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {"picture": found["picture"], **found["tasks"][name]}


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 1)


def _sentences(do: Callable[..., Any], *given: Any) -> Any:
    """What an adapter that is no adapter of ours may raise, as the client's fault."""
    try:
        return do(*given)
    except VitgraftError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise RequestError(f"The adapter cannot be loaded ({type(error).__name__}: {str(error)[:200]}).") from error
