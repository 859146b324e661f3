"""`alignkit label serve` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Server:
    """The command, with a link for each annotator."""

    def __init__(self, database: Path, names: tuple[str, ...], port: int) -> None:
        who = [word for name in names for word in ("-a", name)]
        command = [sys.executable, "-m", "alignkit", "label", "serve", str(database), "--port", str(port), *who]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in names]
        self.links = dict(line.strip().split(": ", 1) for line in lines)
        self.base = self.links[names[0]].partition("/#")[0]
        self.tokens = {name: link.rpartition("=")[2] for name, link in self.links.items()}
        self.process.stdout.readline()

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    def post(self, name: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to an annotator's request; waits while the server is starting."""
        headers = {
            "Authorization": f"Bearer {self.tokens[name]}",
            "Content-Type": "application/json",
            "Origin": self.base,
        }
        request = urllib.request.Request(f"{self.base}/api/{path}", json.dumps(body).encode(), headers)
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return dict(json.load(answer))
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL; once is enough."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class StartServer(Protocol):
    def __call__(self, database: Path, *names: str, port: int = ...) -> Server: ...


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers and kills those still running at the end."""
    started: list[Server] = []

    def start(database: Path, *names: str, port: int = 0) -> Server:
        started.append(Server(database, names, port))
        return started[-1]

    yield start
    for server in started:
        server.kill()
