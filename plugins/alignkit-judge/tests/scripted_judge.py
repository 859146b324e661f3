"""A scripted judge behind a real server on loopback: for tests, and to try a recipe without paying.

    with ScriptedJudge(lambda seen: {"verdict": "A"}) as judge:
        JudgePreferenceOptions(model="scripted", base_url=judge.base_url)

It reads questions like a gullible judge: text outside the marked blocks, or after a control token of a chat template,
is an instruction.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    Decide = Callable[["Seen"], Mapping[str, Any] | str]
    Fault = Callable[["Seen", int], str]

_ID = re.compile(r'"id": "([0-9a-f]{16})"')
_CONTROL_TOKEN = re.compile(r"<\|[^>\n]*\|>|</?s>|\[/?INST\]|<<?/?SYS>?>|<(?:start|end)_of_turn>|<\uff5c[^>\n]*>")


@dataclass(frozen=True, slots=True)
class Seen:
    """A question as the server sees it.

    Attributes:
        nonce: the item's id.
        blocks: the text between the marks, by name: "prompt", "response A", ...
        outside: the text outside them in the user's messages, which counts as instructions.
        asked: the system message.
        payload: the whole request.
        key: the key sent with it.
    """

    nonce: str
    blocks: Mapping[str, str]
    outside: str
    asked: str
    payload: Mapping[str, Any]
    key: str = ""

    @classmethod
    def of(cls, payload: Mapping[str, Any], key: str = "") -> Seen:
        """Parses a request."""
        asked = payload["messages"][0]["content"]
        found = _ID.search(asked)
        nonce = found[1] if found else ""
        user = "\n".join(message["content"] for message in payload["messages"][1:])
        user, *smuggled = _CONTROL_TOKEN.split(user)
        blocks: dict[str, str] = {}

        def keep(match: re.Match[str]) -> str:
            blocks[match[1]] = match[2]
            return ""

        mark = re.escape(nonce)
        outside = re.sub(rf"\[\[{mark} ([^\]]+)\]\]\n(.*?)\n\[\[/{mark} \1\]\]", keep, user, flags=re.DOTALL)
        return cls(nonce, blocks, "\n".join([outside, *smuggled]).strip(), asked, payload, key)


class ScriptedJudge:
    """A server in a thread of this process.

    Args:
        decide: the reply to a question: its fields besides `id`, or a text that is sent unchanged.
        fault: what goes wrong with a question at its n-th request (from 0): "" nothing, "429", "500", "slow", "cut",
            "garbage" (no JSON body), "malformed" (no JSON reply), "refusal", or another status code.
        retry_after: seconds in the header of a 429.
        slow: seconds that a "slow" request takes.

    Attributes:
        counts: requests by result: "served", or the fault.
        error: the message of faults that are status codes.
    """

    def __init__(
        self, decide: Decide, fault: Fault | None = None, *, retry_after: str = "0.02", slow: float = 2.0
    ) -> None:
        self.decide, self.fault, self.retry_after, self.slow = (
            decide,
            fault or (lambda _seen, _number: ""),
            retry_after,
            slow,
        )
        self.error = ""
        self.counts: Counter[str] = Counter()
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        """The address for the options."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        """The number of requests received."""
        return sum(self.counts.values())

    def __enter__(self) -> ScriptedJudge:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, seen: Seen) -> str:
        """Counts a request and returns its fault."""
        question = json.dumps([seen.nonce, seen.payload["messages"][1], seen.payload.get("seed")])
        with self._lock:
            number = self._asked[question]
            self._asked[question] += 1
            fault = self.fault(seen, number)
            self.counts[fault or "served"] += 1
            self.seen.append(seen)
        return fault

    def completion(self, seen: Seen, fault: str) -> Any:
        """The body of a reply."""
        said = "I would rather not say." if fault == "malformed" else self.decide(seen)
        text = said if isinstance(said, str) else json.dumps({"id": seen.nonce, **said})
        refused = fault == "refusal"
        message = {"role": "assistant", "content": None if refused else text, "refusal": "no" if refused else None}
        question = sum(len(each["content"]) for each in seen.payload["messages"]) // 4
        usage = {
            "prompt_tokens": question,
            "completion_tokens": len(text) // 4,
            "total_tokens": question + len(text) // 4,
        }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "scripted", "object": "chat.completion", "created": 0, "model": seen.payload["model"]}
        return {**head, "choices": [choice], "usage": usage}


def _handler(judge: ScriptedJudge) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(404, b"{}")

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen = Seen.of(payload, self.headers.get("Authorization", "").removeprefix("Bearer "))
            fault = judge.take(seen)
            if fault == "slow":
                time.sleep(judge.slow)
            if fault.isdigit():
                message = judge.error or f"status {fault} for {seen.key}"
                self._send(int(fault), json.dumps({"error": {"message": message}}).encode())
                return
            body = (
                b"<html>no judge here</html>"
                if fault == "garbage"
                else json.dumps(judge.completion(seen, fault)).encode()
            )
            self._send(200, body, cut=fault == "cut")

        def _send(self, status: int, body: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 429:
                self.send_header("Retry-After", judge.retry_after)
            self.end_headers()
            self.close_connection = cut
            try:
                self.wfile.write(body[: len(body) // 2] if cut else body)
            except OSError:  # the client has given up
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            """Logs nothing."""

    return Handler
