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

import hmac
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..common.errors import VitgraftError
from ..pages import page
from .asked import Bounded, Limits, pictures_of
from .shelf import NAME
from .stored import Stored
from .work import Work


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
        sent, _ = await pictures_of(request, limits)
        began = time.perf_counter()
        found = await work.ask(sent, [name], draw)
        return {"task": name, "predictions": [_one(of, name) for of in found], "milliseconds": _since(began)}

    @app.post("/v1/predict", openapi_extra={"requestBody": body})
    async def predict_several(request: Request, draw: bool = False) -> Any:
        """What several tasks say of each picture; all of them, where `tasks` is left out."""
        sent, names = await pictures_of(request, limits)
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


def _known(bank: Any, name: str) -> None:
    if name not in bank:
        raise HTTPException(404, f"There is no task {name!r:.120}: GET /v1/tasks lists those that there are.")


def _nowhere(request: Request) -> str:
    return f"There is nothing at {request.url.path[:200]!r}: see /docs."


def _one(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {"picture": found["picture"], **found["tasks"][name]}


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 1)
