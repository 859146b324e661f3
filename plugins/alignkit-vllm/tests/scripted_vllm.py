"""A server on loopback that answers vLLM's routes with `TinyPolicy`, and fails as the script says.

As a program it takes the flags that the sampler gives to vLLM: `python scripted_vllm.py --model DIR --port N ...`. More
flags are `--die-after N` (the N-th request for responses kills the process) and `--die-in-update N`; with
`--once FILE` only if the file does not exist yet.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))

from safetensors import safe_open

from alignkit import Prompt, Sampling
from alignkit.testing import TinyOptions, TinyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    Fault = Callable[["ScriptedVLLM", str, int], Any]
    """Of the server, the route and how often it was called before: None for the usual answer, a status with its text,
    or a function that changes the usual answer."""

Answer = tuple[int, Any]


class ScriptedVLLM:
    """The server.

    Attributes:
        policy: has the server's weights.
        version: what it says of them.
        calls: the routes that were called, in order, with their bodies.
        fault: decides which calls fail.
    """

    def __init__(self, fault: Fault | None = None, *, policy: TinyPolicy | None = None, port: int = 0) -> None:
        self.policy, self.fault = policy or TinyPolicy(), fault
        self.version, self.updating, self.paused = "default", False, False
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ScriptedVLLM:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def routes(self) -> list[str]:
        """The routes that were called, in order, without reading ones."""
        return [route for route, _ in self.calls if route not in ("/health", "/weight_info", "/v1/models")]

    def asked(self, route: str) -> list[Mapping[str, Any]]:
        """The bodies of the calls of a route."""
        return [body for called, body in self.calls if called == route]

    def serve_forever(self) -> None:
        self._http.serve_forever()

    def answer(self, route: str, body: Mapping[str, Any]) -> Answer:
        with self._lock:
            self.calls.append((route, body))
            before = self._counts[route]
            self._counts[route] += 1
        found = self.fault(self, route, before) if self.fault else None
        if isinstance(found, tuple):
            return found
        with self._lock:
            status, said = self._usual(route, body)
        return status, (found(said) if callable(found) else said)

    def _usual(self, route: str, body: Mapping[str, Any]) -> Answer:
        known = {
            "/weight_info": {"weight_version": self.version},
            "/get_world_size": {"world_size": 2},
            "/v1/models": {"data": [{"id": "policy"}]},
        }
        if route in known:
            return 200, known[route]
        if route == "/v1/completions":
            return 200, self._complete(body)
        if route == "/update_weights":
            return self._load(body["update_info"])
        if route == "/finish_weight_update":
            if not self.updating:
                return 500, {"error": "finish without start"}
            self.updating, self.version = False, body["weight_version"]
        if route == "/start_weight_update":
            self.updating = True
        return 200, {"success": True}

    def _load(self, info: Mapping[str, Any]) -> Answer:
        tensors = {}
        if handles := info.get("ipc_handles_pickled"):
            tensors = dict(zip(info["names"], pickle.loads(base64.b64decode(handles)), strict=True))
        for path in info.get("paths", ()):
            with safe_open(path, "pt") as file:
                if file.metadata()["version"] != info["version"]:
                    return 500, {"error": "wrong file"}
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = self.policy.modules()["policy"]
        missing = network.load_state_dict(tensors, strict=False)
        return (500, {"error": str(missing)}) if missing.missing_keys or missing.unexpected_keys else (200, {})

    def _complete(self, body: Mapping[str, Any]) -> Any:
        assert body["temperature"] or body["n"] == 1, "vLLM refuses this"
        text = self.policy._text.text(body["prompt"])
        assert self.policy.prompt_ids([Prompt.of(text)], 0) == [body["prompt"]]
        sampling = Sampling(max_tokens=body["max_tokens"], temperature=body["temperature"])
        batch = self.policy.generate([Prompt.of(text)], n=body["n"], sampling=sampling, seed=body["seed"])
        choices, start = [], 0
        for index, (length, ended) in enumerate(zip(batch.lengths.tolist(), batch.finished.tolist(), strict=True)):
            part = slice(start, start + length)
            start += length
            choices.append(
                {
                    "index": index,
                    "token_ids": batch.response_ids[part].tolist(),
                    "prompt_token_ids": body["prompt"],
                    "logprobs": {"token_logprobs": batch.logprobs[part].tolist()},
                    "finish_reason": "stop" if ended else "length",
                }
            )
        return {"choices": choices[::-1]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply({})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._reply(json.loads(raw) if raw else {})

            def _reply(self, body: Mapping[str, Any]) -> None:
                status, said = server.answer(urlsplit(self.path).path, body)
                if status == 0:  # the connection breaks
                    self.close_connection = True
                    return
                text = (said if isinstance(said, str) else json.dumps(said)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        return Handler


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The figures of each step of a training; alarms are left out."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record for record in records if "loss" in record]


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--die-after", type=int, default=-1)
    parser.add_argument("--die-in-update", type=int, default=-1)
    parser.add_argument("--once", type=Path)
    given, _ = parser.parse_known_args()

    def fault(server: ScriptedVLLM, route: str, before: int) -> None:
        wanted = {"/v1/completions": given.die_after, "/update_weights": given.die_in_update}.get(route, -1)
        if before == wanted and (given.once is None or not given.once.exists()):
            if given.once is not None:
                given.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    policy = TinyPolicy(TinyOptions(model=str(given.model)))
    worker = os.fork()  # stands for vLLM's engine process, which outlives a killed API server
    if worker == 0:
        time.sleep(600)
        os._exit(0)
    ScriptedVLLM(fault, policy=policy, port=given.port).serve_forever()


if __name__ == "__main__":
    main()
