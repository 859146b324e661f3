"""Against a real server: `transformers serve` with a tiny random model, whose nonsense must never become a verdict."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_judge.options import JudgePreferenceOptions, RetryOptions
from alignkit_judge.source import JudgeSource
from transformers import AutoTokenizer

from alignkit.components import Context
from alignkit.records import Group, Prompt
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignkit_judge.options import Protocol

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
START = 180


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(base_url, model) of a server in a process of its own."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    model = write_tiny_llama(tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-c", "from transformers.cli.transformers import main; main()", "serve"]
    log = (tmp_path / "log.txt").open("wb")
    server = subprocess.Popen(
        [sys.executable, *words, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        server.kill()
        server.wait()
        log.close()


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail("the server did not start")


@pytest.mark.slow
def test_nonsense_of_a_real_server_is_an_abstention(served: tuple[str, str]) -> None:
    base_url, model = served
    given = [Group(Prompt.of(f"say {number}"), ("one", "two")) for number in range(3)]
    protocols: tuple[Protocol, ...] = ("pairwise", "listwise", "pointwise")
    for protocol in protocols:
        retry = RetryOptions(attempts=2)
        options = JudgePreferenceOptions(
            model=model, base_url=base_url, protocol=protocol, reply_tokens=24, concurrency=2, retry=retry
        )
        source = JudgeSource(options, Context())
        assert [group.ranks for group in source.judge(given)] == [None] * 3
        assert (source.panel.budget.requests, source.panel.budget.paid) == (12, 12), "six questions, each asked twice"
        assert "no verdict: " in source.explain()
