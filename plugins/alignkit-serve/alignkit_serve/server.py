"""The server: any reward source behind `/score`, one call of it at a time."""

from __future__ import annotations

import hmac
import socket
from threading import Lock
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from alignkit import AlignkitError, InputError
from alignkit.algorithms import checked_scores
from alignkit_serve.protocol import Scored, groups_of

if TYPE_CHECKING:
    from typing import Any

    import uvicorn
    from starlette.requests import Request

    from alignkit import Group, RewardSource
    from alignkit_serve.protocol import Served

LARGEST_BODY = 256 * 2**20


class Scorer:
    """A reward source, called by one thread at a time."""

    def __init__(self, source: RewardSource[Any], served: Served) -> None:
        self.served = served
        self._source, self._lock = source, Lock()

    def score(self, groups: list[Group]) -> bytes:
        """The body of a reply. Raises AlignkitError if the source fails."""
        with self._lock:
            rows = checked_scores(self._source, groups) if groups else []
            return Scored(self.served.digest, rows, self._source.figures()).to_bytes()


def make_app(scorer: Scorer, key: str = "") -> Starlette:
    """The application. A request without the key, if there is one, is refused."""

    def refusal(request: Request) -> Response | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        known = not key or hmac.compare_digest(given.encode(), key.encode())
        return None if known else _error(401, "the key is missing or wrong")

    async def health(request: Request) -> Response:
        return refusal(request) or _json(scorer.served.to_bytes())

    async def score(request: Request) -> Response:
        if refused := refusal(request):
            return refused
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                return _error(413, f"a request has at most {LARGEST_BODY} bytes")
        try:
            groups = groups_of(body)
        except ValueError as error:
            return _error(400, str(error))
        try:
            return _json(await run_in_threadpool(scorer.score, groups))
        except (AlignkitError, ValueError) as error:
            return _error(422, str(error))

    return Starlette(routes=[Route("/health", health), Route("/score", score, methods=["POST"])])


def listen(host: str, port: int) -> socket.socket:
    """A socket that queues connections until the server answers them; port 0 takes any free port.

    Raises:
        InputError: the port is taken, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise InputError(
            str(error), where=f"--host {host} --port {port}", fix="choose another port, or 0 for a free one"
        ) from error
    return listening


def make_server(app: Starlette) -> uvicorn.Server:
    """A server for the application; `run(sockets=[...])` answers until a signal stops it."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False, ws="none")
    return uvicorn.Server(config)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _error(status: int, what: str) -> JSONResponse:
    return JSONResponse({"error": what}, status_code=status)
