"""The server: what it answers, whom it refuses, and what remains when it is killed between writes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_label.records import status
from alignkit_label.server import listen, make_app
from alignkit_label.store import Store
from starlette.testclient import TestClient

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import StartServer

PORT = 8765
BASE = f"http://127.0.0.1:{PORT}"
HTML = "<img src=x onerror=alert(1)>"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "labels.db")
    store.add_items(Group(Prompt.of(f"question {n}"), (f"good {n} {HTML}", f"bad {n}")) for n in range(6))
    return store


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    headers = {"authorization": f"Bearer {store.add_annotator('anna')}", "origin": BASE}
    with TestClient(make_app(store, PORT), base_url=BASE, headers=headers) as client:
        yield client


def write(state: dict[str, Any], number: int, **more: Any) -> dict[str, Any]:
    """The body of a write that prefers the good one of the responses shown."""
    ranks = [0 if text.startswith("good") else 1 for text in state["item"]["responses"]]
    return {"write": f"write {number:04}", "item": state["item"]["id"], "verdict": "ranked", "ranks": ranks, **more}


def test_an_annotator_works_through_the_items(client: TestClient, store: Store) -> None:
    store.configure(guidelines="Be kind.")
    state = client.post("/api/state", json={}).json()
    assert state["guidelines"] == "Be kind."
    assert state["progress"] == {"done": 0, "skipped": 0, "total": 6}
    assert state["undo"] is None
    assert set(state["item"]) == {"id", "prompt", "responses"}, "nothing tells where a response comes from"
    state = client.post("/api/annotate", json=write(state, 1, seconds=3.5)).json()
    assert state["undo"] == "write 0001"
    skip = {"write": "write 0002", "item": state["item"]["id"], "verdict": "skip", "reason": "unclear"}
    state = client.post("/api/annotate", json=skip).json()
    assert state["progress"] == {"done": 2, "skipped": 1, "total": 6}
    state = client.post("/api/undo", json={"write": "write 0002"}).json()
    assert state["item"]["id"] == skip["item"]
    for number in range(3, 8):
        state = client.post("/api/annotate", json=write(state, number)).json()
    assert state["item"] is None
    assert [(one.ranks, one.seconds) for one in store.said()] == [((0, 1), 3.5), *[((0, 1), None)] * 5]


def test_a_write_that_is_sent_again_is_one(client: TestClient, store: Store) -> None:
    state = client.post("/api/state", json={}).json()
    body = write(state, 1)
    first, again = (client.post("/api/annotate", json=body).json() for _ in range(2))
    assert (first.pop("repeated"), again.pop("repeated")) == (False, True)
    assert first == again
    assert len(store.said()) == 1
    twice = client.post("/api/annotate", json={**body, "write": "another id"})
    assert (twice.status_code, twice.json()) == (409, {"error": "you have already judged this item"})


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"host": "evil.example:8765"}, 403),
        ({"host": "127.0.0.1"}, 403),
        ({"host": "127.0.0.1:8765.evil.example"}, 403),
        ({"content-type": "text/plain"}, 403),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": ""}, 401),
    ],
)
def test_others_are_refused(client: TestClient, store: Store, headers: dict[str, str], code: int) -> None:
    body = json.dumps(write(client.post("/api/state", json={}).json(), 1))
    good = {"content-type": "application/json"}
    refused = client.post("/api/annotate", content=body, headers={**good, **headers})
    assert refused.status_code == code
    assert "item" not in refused.json()
    assert store.said() == []
    assert client.post("/api/annotate", content=body, headers=good).status_code == 200


def test_a_write_without_an_origin_is_refused(client: TestClient) -> None:
    del client.headers["origin"]
    assert client.post("/api/state", json={}).status_code == 403


def test_rebound_names_get_no_page_and_methods_are_fixed(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "localhost:8765"}).status_code == 200
    assert client.get("/api/state").status_code == 405
    assert client.get("/../store.py").status_code == 404
    assert client.get("/labels.db").status_code == 404


def test_pages_have_a_strict_policy_and_set_no_html(client: TestClient) -> None:
    for path in ("/", "/label.js", "/label.css", "/api/none"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    script = client.get("/label.js").text
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"):
        assert forbidden not in script
    page = client.get("/").text
    assert "//" not in page, "nothing comes from elsewhere"
    assert "style=" not in page


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", 400),
        ("[]", 400),
        ('{"seconds": NaN}', 400),
        ('{"write": 1}', 422),
        ('{"write": "write 1", "item": "x", "verdict": "ranked", "ranks": [0, 1]}', 422),
        ('{"write": "write 0001", "item": "none", "verdict": "ranked", "ranks": [0, 1]}', 409),
        ('{"write": "write 0001", "item": "none", "verdict": "ranked", "ranks": "01"}', 422),
        ('{"write": "write 0001", "item": "none", "verdict": "skip", "seconds": true}', 422),
        ('{"reason": "' + "x" * 70_000 + '"}', 413),
    ],
)
def test_malformed_bodies_are_refused(client: TestClient, body: str, code: int) -> None:
    answer = client.post("/api/annotate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == code
    assert answer.json()["error"]


def test_nothing_is_lost_and_nothing_is_twice_when_the_server_is_killed_between_writes(
    store: Store, start_server: StartServer
) -> None:
    store.configure(overlap=2)
    server = start_server(store.path, "anna", "ben")
    states = {name: server.post(name, "state", {}) for name in server.tokens}
    acknowledged = []
    for round_number in range(2):
        for name, state in states.items():
            body = write(state, round_number * 10 + len(acknowledged))
            states[name] = server.post(name, "annotate", body)
            acknowledged.append((name, body))
        server.kill()
        assert [(one.annotator, one.item) for one in Store(store.path).said()] == [
            (name, body["item"]) for name, body in acknowledged
        ]
        server = start_server(store.path, "anna", "ben", port=server.port)
        for name, body in acknowledged:
            assert server.post(name, "annotate", body)["repeated"]
    server.kill()
    assert len(Store(store.path).said()) == len(acknowledged) == 4


def test_a_link_can_be_opened_as_soon_as_it_is_printed() -> None:
    with listen(0) as listening, socket.create_connection(listening.getsockname(), timeout=5):
        pass


@pytest.mark.slow
def test_a_kill_at_any_moment_keeps_what_was_answered(store: Store, start_server: StartServer) -> None:
    store.add_items(Group(Prompt.of(f"more {n}"), (f"good {n}", f"bad {n}")) for n in range(150))
    names = ("anna", "ben", "cleo")
    server = start_server(store.path, *names)
    answered: dict[str, list[str]] = {name: [] for name in server.tokens}
    holder = [server]

    def work(name: str) -> None:
        number = 0
        while True:
            with contextlib.suppress(OSError, ValueError):
                state = holder[0].post(name, "state", {})
                if state["item"] is None:
                    return
                body = write(state, 0, write=f"{name} {number:05}")
                holder[0].post(name, "annotate", body)
                answered[name].append(body["item"])
            number += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in answered]
    for thread in threads:
        thread.start()
    for pause in (0.25, 0.6, 0.4):
        time.sleep(pause)
        holder[0].kill()
        holder[0] = start_server(store.path, *names, port=server.port)
    for thread in threads:
        thread.join(120)
    holder[0].kill()
    items = [one.item for one in store.said()]
    assert len(items) == len(set(items)) == 156
    assert {item for found in answered.values() for item in found} <= set(items)
    assert status(store)["complete"] == 156
