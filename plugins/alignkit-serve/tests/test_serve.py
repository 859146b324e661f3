"""Client and server on loopback: the scores are the local ones bit for bit, and nothing else ever becomes a reward."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_serve.command import _is_local, digest_of
from alignkit_serve.options import HttpOptions
from alignkit_serve.protocol import BadReply, Scored, Served, groups_of, request_of
from alignkit_serve.reward import HttpReward, divided
from served import RewardServer, Scripted

import alignkit
from alignkit import Config, Group, InputError, OptionsError, PluginError, Prompt, RewardSource, StoppedByCheck
from alignkit.commands import read_recipe
from alignkit.plugins import Registration, registry
from alignkit.testing import RewardSourceContract, TinyOptions, TinyPolicy, TinyReward

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

KEY = "a key for tests"


class Fractions(RewardSource[Config]):
    """Numbers that only float64 holds, and an abstention for an empty response."""

    def __init__(self, wait: float = 0.0) -> None:
        super().__init__()
        self.wait, self.calls, self.busy = wait, 0, 0

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        assert self.busy == 0, "one call at a time"
        self.busy, self.calls = 1, self.calls + 1
        time.sleep(self.wait)
        self.busy = 0
        return [[math.sqrt(len(text)) / 3 if text else None for text in group.responses] for group in groups]

    def figures(self) -> Mapping[str, float]:
        return {"calls": float(self.calls)}


class Failing(RewardSource[Config]):
    """Gives whatever it is told to."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        if isinstance(self.value, Exception):
            raise self.value
        return [[self.value] * len(group.responses) for group in groups]


def material(count: int = 20) -> list[Group]:
    """Groups of one to four responses, chats and texts with their columns, the empty response among them."""
    chat = [{"role": "user", "content": "hä? 🙂"}]
    return [
        Group(
            Prompt.of(chat if number % 2 else f"question {number}", {"answer": str(number)}),
            tuple("x" * (number * 7 + k) for k in range(1 + number % 4)),
            finished=(True,) * (1 + number % 4),
        )
        for number in range(count)
    ]


def options(url: str, **more: Any) -> HttpOptions:
    return HttpOptions(**{"url": url, "patience": 5.0, "timeout": 5.0, **more})


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class TestHttpContract(RewardSourceContract):
    component = HttpReward

    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with RewardServer(TinyReward()) as server:
            monkeypatch.setattr(type(self), "options", {"url": server.url, "batch_size": 3})
            yield


@pytest.mark.parametrize(("size", "requests"), [(1, 20), (5, 11), (1000, 1)])
def test_scores_equal_the_local_ones_bit_for_bit_and_in_order(size: int, requests: int) -> None:
    source = Fractions()
    with RewardServer(source) as server:
        remote = HttpReward(options(server.url, batch_size=size))
        assert remote.score(material()) == Fractions().score(material())
        assert source.calls == requests
        assert remote.score([]) == []


def test_requests_hold_whole_groups() -> None:
    sizes = [[len(group.responses) for group in part] for part in divided(material(8), 5)]
    assert sizes == [[1, 2], [3], [4, 1], [2, 3], [4]]
    assert [len(part) for part in divided(material(8), 1)] == [1] * 8
    assert list(divided([], 5)) == []


def test_figures_are_the_mean_over_responses() -> None:
    with RewardServer(Fractions()) as server:
        remote = HttpReward(options(server.url, batch_size=3, concurrency=1))
        remote.score(material(3))
        assert remote.figures() == {"calls": (1 * 3 + 2 * 3) / 6}
        remote.score(material(1))
        assert remote.figures() == {"calls": 3.0}


def test_a_group_survives_the_way_there() -> None:
    assert groups_of(request_of(material())) == material()
    for body in (b"[]", b"{}", b'{"protocol": 2, "groups": []}', b'{"protocol": 1, "groups": [1]}', b"\xff", b"NaN"):
        with pytest.raises(ValueError, match=r"request|JSON|decode|Expecting"):
            groups_of(body)


def test_a_dead_server_is_found_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="no server answers: ConnectionRefusedError") as refused:
        HttpReward(options(f"http://127.0.0.1:{free_port()}", patience=300.0))
    assert time.monotonic() - start < 5
    assert "alignkit serve-reward" in refused.value.fix


@pytest.mark.parametrize("said", [b"<html>", b"{}", b'{"protocol": 2}', b"[1]"])
def test_what_is_no_score_server_is_refused(said: bytes) -> None:
    with Scripted(lambda _: (200, b"", {}), health=said) as server, pytest.raises(InputError, match="no score server"):
        HttpReward(options(server.url))


GOOD = json.dumps({"protocol": 1, "digest": "one", "scores": [[0.5]]}).encode()


@pytest.mark.parametrize(
    "bad",
    [
        (200, b"<html>back soon</html>", {}),
        (200, GOOD.replace(b"0.5", b"NaN"), {}),
        (200, GOOD.replace(b"0.5", b"1e999"), {}),
        (200, GOOD.replace(b"0.5", b"true"), {}),
        (200, GOOD.replace(b"0.5", b'"1"'), {}),
        (200, GOOD.replace(b"0.5", b"0.5, 1"), {}),
        (200, GOOD.replace(b"[[0.5]]", b"[]"), {}),
        (200, GOOD.replace(b"[[0.5]]", b"{}"), {}),
        (200, b'{"protocol": 1}', {}),
        (500, b"oops", {}),
        (503, b"", {"retry-after": "0.01"}),
        (429, b"", {}),
    ],
)
def test_what_are_no_scores_counts_as_a_failure_and_is_asked_again(bad: tuple[int, bytes, dict[str, str]]) -> None:
    group = [Group(Prompt.of("a"), ("b",))]
    with Scripted(lambda number: bad if number < 3 else (200, GOOD, {})) as server:
        assert HttpReward(options(server.url)).score(group) == [[0.5]]
        assert server.requests == 4
    with Scripted(lambda _: bad) as server, pytest.raises(StoppedByCheck, match=r"no scores for 0.05 s .*the last: "):
        HttpReward(options(server.url, patience=0.05)).score(group)


@pytest.mark.parametrize(
    ("status", "error", "what"),
    [(401, InputError, "401: no"), (404, InputError, "no score server"), (302, InputError, "no score server"),
     (422, PluginError, "server .*: no$")],
)  # fmt: skip
def test_what_another_try_would_not_change_is_not_tried_again(status: int, error: type[Exception], what: str) -> None:
    with Scripted(lambda _: (status, b'{"error": "no"}', {"location": "http://127.0.0.1:9"})) as server:
        with pytest.raises(error, match=what):
            HttpReward(options(server.url)).score([Group(Prompt.of("a"), ("b",))])
        assert server.requests == 1


def test_one_failure_ends_the_other_requests() -> None:
    def answer(number: int) -> tuple[int, bytes, dict[str, str]]:
        return (422, b'{"error": "bad luck"}', {}) if number == 3 else (500, b"", {})

    with Scripted(answer) as server:
        start = time.monotonic()
        with pytest.raises(PluginError, match="bad luck"):
            HttpReward(options(server.url, patience=100.0, batch_size=1)).score(material(8))
        assert time.monotonic() - start < 10


def test_a_server_that_is_killed_and_comes_back_loses_nothing() -> None:
    port = free_port()
    first = RewardServer(Fractions(wait=0.05), port=port)
    result: list[Any] = []
    with first:
        remote = HttpReward(options(first.url, batch_size=1, patience=30.0, concurrency=2))
        asking = threading.Thread(target=lambda: result.append(remote.score(material())))
        asking.start()
        time.sleep(0.2)
        first.stop()
    time.sleep(0.2)
    assert asking.is_alive(), "it waits for the server"
    with RewardServer(Fractions(), port=port):
        asking.join(20)
    assert result == [Fractions().score(material())]


def test_a_server_that_comes_back_with_another_reward_stops_the_run() -> None:
    port = free_port()
    with RewardServer(Fractions(), port=port) as server:
        remote = HttpReward(options(server.url))
    with RewardServer(Fractions(), port=port, digest="two"), pytest.raises(StoppedByCheck, match="another reward"):
        remote.score(material())


def test_a_slow_server_is_given_up_and_asked_again() -> None:
    def answer(number: int) -> tuple[int, bytes, dict[str, str]]:
        time.sleep(0.5 if number == 0 else 0.0)
        return 200, GOOD, {}

    group = [Group(Prompt.of("a"), ("b",))]
    with Scripted(answer) as server:
        assert HttpReward(options(server.url, timeout=0.1)).score(group) == [[0.5]]
        assert server.requests == 2


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (math.nan, "nan is not a finite number"),
        ("1", "'1' is not"),
        (RuntimeError("no model"), "RuntimeError: no model"),
    ],
)
def test_a_reward_that_fails_behind_the_server_names_its_reason(value: Any, what: str) -> None:
    with RewardServer(Failing(value)) as server, pytest.raises(PluginError, match=what):
        HttpReward(options(server.url, patience=100.0)).score(material(3))


def test_a_key_is_needed_where_the_server_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", KEY)
    monkeypatch.setenv("WRONG_KEY", KEY[:-1])
    with RewardServer(Fractions(), key=KEY) as server:
        for wrong in ({}, {"key_env": "WRONG_KEY"}):
            with pytest.raises(InputError, match="the key is missing or wrong") as refused:
                HttpReward(options(server.url, **wrong))
            assert KEY[:-1] not in str(refused.value)
        known = HttpReward(options(server.url, key_env="REWARD_KEY"))
        assert known.score(material()) == Fractions().score(material())
    with Scripted(lambda _: (500, f"you sent {KEY}".encode(), {})) as echo:
        remote = HttpReward(options(echo.url, key_env="REWARD_KEY", patience=0.01))
        with pytest.raises(StoppedByCheck, match="redacted") as stopped:
            remote.score(material(1))
        assert KEY not in str(stopped.value)
        assert set(echo.keys) == {f"Bearer {KEY}"}


def test_options_hold_no_key_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_KEY", raising=False)
    for given, what in (
        ({"url": "gpu2:8000"}, "is not a URL"),
        ({"url": "http://gpu2:8000/#x"}, "may contain credentials"),
        ({"key_env": "REWARD_KEY"}, "REWARD_KEY is not set"),
        ({"key_env": "my key"}, "not the name of an environment variable"),
    ):
        with pytest.raises(OptionsError, match=what):
            HttpOptions(**{"url": "http://gpu2:8000", **given})


def test_replies_are_read_strictly() -> None:
    groups = [Group(Prompt.of("a"), ("b", "c")), Group(Prompt.of("d"), ("e",))]
    body = Scored("one", [[1.0, None], [2.5]], {"reward/0": 1.75}).to_bytes()
    assert Scored.of(body, groups) == Scored("one", [[1.0, None], [2.5]], {"reward/0": 1.75})
    for wrong in (groups[:1], groups[::-1], [*groups, groups[0]]):
        with pytest.raises(BadReply, match="responses, not for"):
            Scored.of(body, wrong)
    with pytest.raises(BadReply, match="figures"):
        Scored.of(body.replace(b"1.75", b"null"), groups)
    assert Served.of(Served("rules", "9f").to_bytes()) == Served("rules", "9f")


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gpu2", False)]
)
def test_only_this_machine_needs_no_key(host: str, local: bool) -> None:
    assert _is_local(host) is local


def test_the_digest_follows_options_files_and_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "rewards_of_a_test.py"
    module.write_text("def f(completions, **_):\n    return [1.0] * len(completions)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(reward: str, *overrides: str) -> str:
        return digest_of(read_recipe(None, flags={"reward": reward}, overrides=overrides))

    rules = digest("rules", "reward.length.target=3")
    assert rules == digest("rules", "reward.length.target=3") != digest("rules", "reward.length.target=4")
    function = digest("rewards_of_a_test:f")
    module.write_text("def f(completions, **_):\n    return [2.0] * len(completions)\n", encoding="utf-8")
    assert digest("rewards_of_a_test:f") != function


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny policy, and `http` where its distribution is not installed."""
    wanted = [
        Registration("policy", "tiny", TinyPolicy, TinyOptions, "alignkit-test"),
        Registration("reward", "http", "alignkit_serve.reward:HttpReward", HttpOptions, "alignkit-serve"),
    ]
    known = {(one.role, one.name) for one in registry().registrations}
    new = [one for one in wanted if (one.role, one.name) not in known]
    monkeypatch.setattr(registry(), "registrations", [*registry().registrations, *new])


def test_a_run_with_a_served_reward_equals_the_run_with_the_reward(tiny: None, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("red", "blue", "a longer one")))
    local = {"plugin": "rules", "length": {"target": 3, "maximum": 8}, "patterns": {"a": 2.0}}
    source = alignkit.build_component("reward", local)

    def metrics(name: str, reward: Any) -> list[dict[str, Any]]:
        alignkit.run(
            {
                "policy": {"plugin": "tiny"},
                "prompts": {"path": str(prompts)},
                "reward": reward,
                "optimizer": {"plugin": "grpo", "iterations": 3, "batch_size": 3, "group_size": 4, "minibatch_size": 2},
                "sampling": {"max_tokens": 8},
                "run": {"holdout": 0.0},
            },
            out=tmp_path / name,
            stages="align",
            progress=False,
        )
        lines = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [
            {key: x for key, x in json.loads(line).items() if "_per_s" not in key and key != "time"} for line in lines
        ]

    with RewardServer(source) as server:
        remote = metrics("remote", {"plugin": "http", "url": server.url, "batch_size": 3})
    assert remote == metrics("local", local)
    assert [line["step"] for line in remote if "loss" in line] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="no server answers"):
        metrics("dead", {"plugin": "http", "url": server.url})


def test_a_response_whose_score_is_missing_is_dropped_not_zero() -> None:
    with RewardServer(Fractions()) as server:
        scores = HttpReward(options(server.url)).score([replace(material(4)[3], responses=("", "a", "", "b"))])
    assert scores == [[None, 1 / 3, None, 1 / 3]]
