"""A score server on loopback in a thread of this process, and servers that misbehave."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from alignkit_serve.protocol import Served
from alignkit_serve.server import Scorer, listen, make_app, make_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignkit import RewardSource


class RewardServer:
    """`with RewardServer(source) as server: HttpOptions(url=server.url)`; `stop` breaks off what it is answering."""

    def __init__(self, source: RewardSource[Any], *, digest: str = "one", key: str = "", port: int = 0) -> None:
        self.listening = listen("127.0.0.1", port)
        self.port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = make_server(make_app(Scorer(source, Served("test", digest)), key))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.listening]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.002)
        return self

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self.listening.close()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Scripted:
    """A server that answers `/score` with what `answer(number of the request)` returns: (status, body, headers)."""

    def __init__(self, answer: Callable[[int], tuple[int, bytes, dict[str, str]]], health: bytes | None = None) -> None:
        self.requests = 0
        self.keys: list[str | None] = []
        script, lock = self, threading.Lock()
        said = Served("test", "one").to_bytes() if health is None else health

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, said, {})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    number, script.requests = script.requests, script.requests + 1
                    script.keys.append(self.headers["authorization"])
                self._send(*answer(number))

            def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
