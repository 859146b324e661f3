"""The annotators' page on 127.0.0.1: a small JSON interface to the store, and the static files.

What keeps other pages and other people out:
- the server listens on 127.0.0.1 only, and answers only requests whose Host is that address and port (DNS rebinding);
- every request except for static files needs the annotator's token in a header, which a page of another origin can't
  send; writes with another Origin, or with a body not declared as JSON, are refused (CSRF);
- a strict Content-Security-Policy, and a page that shows texts only as text.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from alignkit import InputError, message_text
from alignkit_label.store import Refused, Said, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).parent / "static"
HOST = "127.0.0.1"
LARGEST_BODY = 64 * 1024
POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "img")),
        *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def make_app(store: Store, port: int) -> Starlette:
    """The application, for a server on 127.0.0.1 at this port."""

    def handler(act: Callable[[Store, str, dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
        async def endpoint(request: Request) -> Response:
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            annotator = await run_in_threadpool(store.annotator_of, token)
            if annotator is None:
                return _refusal(401, "unknown token: open your own link again")
            try:
                body = await _body(request)
                return JSONResponse(await run_in_threadpool(act, store, annotator, body))
            except Refused as refused:
                return _refusal(refused.status, str(refused))

        return endpoint

    routes = [
        Route("/", _static("index.html")),
        *(Route(f"/{name}", _static(name)) for name in ("label.js", "label.css")),
        *(Route(f"/api/{act.__name__}", handler(act), methods=["POST"]) for act in (state, annotate, undo)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, port=port)], exception_handlers={404: _not_found})


class Guard:
    """Refuses requests for other hosts and writes from other origins, and adds the headers of every answer."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope["method"], headers)
        if problem:
            await _refusal(403, problem)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _problem(self, method: str, headers: dict[str, str]) -> str:
        host = headers.get("host", "")
        if host not in self._hosts:
            return "this server answers only on 127.0.0.1"
        if method in ("GET", "HEAD"):
            return ""
        if headers.get("origin") != f"http://{host}":
            return "the request comes from another page"
        if headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return "the request must be JSON"
        return ""


def state(store: Store, annotator: str, _sent: dict[str, Any]) -> dict[str, Any]:
    """The annotator's current item and progress."""
    found = store.next(annotator)
    settings = store.settings()
    item = None
    if found is not None:
        one, shown = found
        prompt = one.group.prompt
        messages = [{"role": "", "content": prompt.text}] if prompt.messages is None else list(prompt.messages)
        item = {
            "id": one.id,
            "prompt": [{"role": str(m["role"]), "content": message_text(m)} for m in messages],
            "responses": [one.group.responses[index] for index in shown],
        }
    return {
        "annotator": annotator,
        "item": item,
        "progress": store.progress(annotator),
        "undo": store.last(annotator),
        "guidelines": settings["guidelines"],
    }


def annotate(store: Store, annotator: str, body: dict[str, Any]) -> dict[str, Any]:
    """Saves a verdict and returns the next state. The answer to a repeated write differs only in `repeated`."""
    ranks, seconds = body.get("ranks"), body.get("seconds")
    if not isinstance(ranks, list | None) or isinstance(seconds, bool) or not isinstance(seconds, float | int | None):
        raise Refused(422, "ranks must be a list, seconds a number")
    said = Said(
        write=_string(body, "write", 8, 64),
        item=_string(body, "item", 1, 64),
        annotator=annotator,
        verdict=_string(body, "verdict", 1, 16),  # type: ignore[arg-type]
        ranks=None if ranks is None else tuple(ranks),
        seconds=None if seconds is None else float(seconds),
        reason=_string(body, "reason", 0, 4000) if "reason" in body else "",
    )
    new = store.record(said)
    return {"repeated": not new, **state(store, annotator, body)}


def undo(store: Store, annotator: str, body: dict[str, Any]) -> dict[str, Any]:
    """Takes back the last verdict and shows its item again."""
    store.undo(annotator, _string(body, "write", 8, 64))
    return state(store, annotator, body)


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1 that queues connections until `serve` answers them; port 0 takes any free port.

    Raises:
        InputError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise InputError(str(error), where=f"--port {port}", fix="choose another port, or 0 for a free one") from error
    return listening


def serve(store: Store, listening: socket.socket) -> None:
    """Answers requests until a signal stops it."""
    import uvicorn

    app = make_app(store, listening.getsockname()[1])
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False, ws="none")
    uvicorn.Server(config).run(sockets=[listening])


def _static(name: str) -> Callable[..., Any]:
    async def endpoint(_request: Request) -> Response:
        return FileResponse(STATIC / name)

    return endpoint


async def _body(request: Request) -> dict[str, Any]:
    text = b""
    async for part in request.stream():
        text += part
        if len(text) > LARGEST_BODY:
            raise Refused(413, "too large")
    try:
        body = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise Refused(400, "not valid JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "not a JSON object")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _string(body: dict[str, Any], name: str, shortest: int, longest: int) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not shortest <= len(value) <= longest:
        raise Refused(422, f"{name} must be a text of {shortest} to {longest} characters")
    return value


def _refusal(status: int, what: str) -> JSONResponse:
    return JSONResponse({"error": what}, status_code=status)


async def _not_found(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("No such page.", status_code=404)
