"""A judge's server in trouble, on loopback: nothing wrong is stored, only answers are paid for, and what arrived is
kept."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_judge import remote
from alignkit_judge.cache import VerdictCache
from alignkit_judge.command import app
from alignkit_judge.options import JudgeRewardOptions, RetryOptions
from alignkit_judge.remote import NoCompletion, read_completion
from alignkit_judge.source import JudgeReward
from scripted_judge import ScriptedJudge
from test_judge_remote import KEY, TRUE_RANKS, by_quality, pairs, source_at
from typer.testing import CliRunner

from alignkit.errors import InputError, StoppedByCheck
from alignkit.records import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from scripted_judge import Seen

    from alignkit.records import Group

    Body = Callable[[Seen, str], Any]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.002)


def saved(folder: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(folder / "verdicts.sqlite")) as database:
        return [json.loads(answer) for (answer,) in database.execute("SELECT answer FROM verdicts")]


def ranks(groups: Iterable[Group]) -> list[Any]:
    return [group.ranks for group in groups]


def with_body(judge: ScriptedJudge, change: Callable[[dict[str, Any]], Any]) -> None:
    """Lets the server change every body before it is sent."""
    plain: Body = judge.completion
    judge.completion = lambda seen, fault: change(plain(seen, fault))  # type: ignore[method-assign]


def test_a_server_that_answers_with_html_and_recovers_loses_nothing_and_is_paid_once(tmp_path: Path) -> None:
    html = [6]

    def fault(seen: Seen, number: int) -> str:
        html[0] -= 1
        return "garbage" if html[0] >= 0 else ""

    with ScriptedJudge(by_quality, fault) as judge:
        source = source_at(judge, tmp_path)
        assert ranks(source.judge(pairs(12))) == list(TRUE_RANKS) * 4
        assert judge.counts == Counter(served=24, garbage=6)
        assert (source.panel.budget.paid, source.panel.budget.requests) == (24, 30)
        assert len(saved(tmp_path)) == 24


@pytest.mark.parametrize("body", [{"error": {"message": "overloaded"}}, {"choices": []}, {"choices": None}, [], None])
def test_a_body_that_is_no_completion_is_a_failure_of_the_server(body: Any, tmp_path: Path) -> None:
    with ScriptedJudge(by_quality) as judge:
        with_body(judge, lambda _: body)
        source = source_at(judge, tmp_path, retry=RetryOptions(attempts=2, max_failures=3), concurrency=1)
        with pytest.raises(StoppedByCheck, match=r"3 questions in a row got no answer .*status 200"):
            source.judge(pairs(12))
        assert (judge.requests, source.panel.budget.paid, source.panel.budget.tokens) == (6, 0, 0)
    assert saved(tmp_path) == []


@pytest.mark.parametrize("usage", [{}, None, {"prompt_tokens": None}, {"prompt_tokens": "7", "completion_tokens": 2}])
def test_verdicts_count_whatever_the_server_says_of_tokens(usage: Any) -> None:
    with ScriptedJudge(by_quality) as judge:
        with_body(judge, lambda body: {**body, "usage": usage})
        source = source_at(judge)
        assert ranks(source.judge(pairs(12))) == list(TRUE_RANKS) * 4
        assert source.panel.budget.tokens > 0


def test_the_content_may_come_in_parts() -> None:
    message = {"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}
    assert read_completion(json.dumps({"choices": [{"message": message}]})).text == "ab"
    with pytest.raises(NoCompletion, match="without a completion"):
        read_completion(json.dumps({"choices": [{"message": {"content": 3}}]}))


def test_a_timed_out_request_counts_as_paid() -> None:
    with ScriptedJudge(by_quality, lambda seen, number: "slow" if number == 0 else "", slow=0.6) as judge:
        source = source_at(judge, retry=RetryOptions(timeout=0.2), reply_tokens=100)
        source.judge(pairs(1))
        budget = source.panel.budget
        assert (budget.requests, budget.paid, budget.timed_out) == (4, 2, 2)
        assert budget.tokens > 2 * 100
        assert "2 timed out and counted as paid" in source.explain()


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_judge_remote import pairs, source_at
class At:
    base_url = sys.argv[1]
try:
    source_at(At, Path(sys.argv[2]), concurrency=4).judge(pairs(60))
except BaseException as error:
    print(type(error).__name__, error, flush=True)
    raise SystemExit(getattr(error, "exit_code", 9))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_answers_under_way_and_keeps_them(number: signal.Signals, tmp_path: Path) -> None:
    def unhurried(seen: Seen) -> Mapping[str, Any]:
        time.sleep(0.05)
        return by_quality(seen)

    with ScriptedJudge(unhurried) as judge:
        words = [sys.executable, "-c", CHILD, judge.base_url, str(tmp_path), str(Path(__file__).parent)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while judge.counts["served"] < 20 and child.poll() is None:
            time.sleep(0.005)
        os.kill(child.pid, number)
        said, notice = child.communicate(timeout=30)
        assert child.returncode == 128 + number
        assert f"stopped by {number.name}; all verdicts are saved" in said
        assert "waiting for the answers under way" in notice
        assert 20 <= len(saved(tmp_path)) == judge.requests < 120


def test_what_is_under_way_is_kept_when_the_server_refuses_the_rest(tmp_path: Path) -> None:
    def fault(seen: Seen, number: int) -> str:
        return "401" if judge.requests == 5 else "slow"

    with ScriptedJudge(by_quality, fault, slow=0.1) as judge:
        with pytest.raises(InputError, match="401"):
            source_at(judge, tmp_path, concurrency=6).judge(pairs(6))
        assert len(saved(tmp_path)) == judge.counts["slow"] >= 5


def test_a_reply_that_is_cut_off_says_so_and_names_the_option() -> None:
    def cut(body: dict[str, Any]) -> dict[str, Any]:
        body["choices"][0]["finish_reason"] = "length"
        body["choices"][0]["message"]["content"] = "<think>Let me see"
        return body

    with ScriptedJudge(by_quality) as judge:
        with_body(judge, cut)
        source = source_at(judge, abstentions="keep", reply_tokens=77)
        assert ranks(source.judge(pairs(1))) == [None]
    assert "cut off at reply_tokens = 77 2" in source.explain()


def test_many_unusable_replies_in_a_row_stop_the_run_and_are_shown(tmp_path: Path) -> None:
    with ScriptedJudge(lambda seen: f"As a model, I prefer {seen.blocks['response A']}") as judge:
        source = source_at(judge, tmp_path, retry=RetryOptions(max_unusable=4), concurrency=1)
        with pytest.raises(StoppedByCheck, match="4 replies in a row hold no verdict") as stop:
            source.judge(pairs(12))
        assert str(stop.value).count("As a model, I prefer") == 3
        assert judge.requests == 8


def test_refusals_and_abstentions_do_not_stop_a_run() -> None:
    with ScriptedJudge(lambda seen: {"verdict": "abstain"}) as judge:
        retry = RetryOptions(max_unusable=2)
        assert ranks(source_at(judge, retry=retry, abstentions="keep").judge(pairs(4))) == [None] * 4
        judge.fault = lambda seen, number: "refusal"
        assert ranks(source_at(judge, retry=retry, abstentions="keep").judge(pairs(4))) == [None] * 4


def test_a_server_without_structured_replies_is_told_how_to_go_on() -> None:
    with ScriptedJudge(by_quality, lambda seen, number: "400" if "response_format" in seen.payload else "") as judge:
        judge.error = "response_format is not supported"
        with pytest.raises(InputError, match="doesn't support structured = 'json-schema'") as refused:
            source_at(judge).judge(pairs(2))
        assert refused.value.fix == 'set structured = "text"'
        assert ranks(source_at(judge, structured="text").judge(pairs(2))) == [(0, 1), (1, 0)]


class Ask:
    """Counts how often responses are sampled."""

    prompts = (Prompt.of("item 0"),)
    sampled = 0

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        self.sampled += 1
        return pairs(1)


def test_a_dead_server_is_found_before_sampling_unless_there_are_saved_verdicts(tmp_path: Path) -> None:
    with ScriptedJudge(by_quality) as judge:
        alive, ask = source_at(judge, tmp_path), Ask()
        assert ranks(alive.preferences(ask)) == [(0, 1)]
        dead, without = source_at(judge, tmp_path), source_at(judge, tmp_path / "other")
        options = JudgeRewardOptions(model="scripted", base_url=judge.base_url)
        JudgeReward(options)
    assert ranks(dead.preferences(ask)) == [(0, 1)]
    assert ask.sampled == 2
    with pytest.raises(InputError, match="no server answers") as refused:
        list(without.preferences(ask))
    assert ask.sampled == 2
    assert judge.base_url in refused.value.fix
    with pytest.raises(InputError, match="no server answers"):
        JudgeReward(options)


def test_replies_are_kept_if_asked_for_and_never_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with ScriptedJudge(lambda seen: {**by_quality(seen), "key": seen.key}) as judge:
        source_at(judge, tmp_path / "no").judge(pairs(1))
        source_at(judge, tmp_path / "yes", keep_replies=True, key_env="JUDGE_KEY").judge(pairs(1))
    assert {record["reply"] for record in saved(tmp_path / "no")} == {""}
    kept = [json.loads(record["reply"]) for record in saved(tmp_path / "yes")]
    assert sorted(said["verdict"] for said in kept) == ["A", "B"]
    assert {said["key"] for said in kept} == {"[redacted]"}


def verdicts(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_saved_verdicts_are_listed_repaired_and_forgotten(tmp_path: Path) -> None:
    file = str(tmp_path / "verdicts.sqlite")
    with ScriptedJudge(lambda seen: "no verdict") as judge:
        source_at(judge, tmp_path, abstentions="keep").judge(pairs(2))
        judge.decide = by_quality
        source_at(judge, tmp_path).judge(pairs(3))
        before = judge.requests
        assert verdicts("list", file, "--replies", "1") == {
            "scripted": {"malformed": 4, "verdicts": 2},
            "replies": ["no verdict"],
        }
        cache = VerdictCache(tmp_path / "verdicts.sqlite")
        broken = next(row for row in cache.rows() if row.answer.unusable)
        assert broken.form is not None
        # A verdict in a form that an earlier version could not read.
        late = json.dumps({"id": broken.form.nonce, "verdict": "b"})
        with closing(sqlite3.connect(file)) as database, database:
            record = json.dumps({**broken.record, "reply": f"Sure: {late}"})
            database.execute("UPDATE verdicts SET answer = ? WHERE key = ?", (record, broken.key))
        assert verdicts("repair", file) == {"unusable": 4, "repaired": 1}
        assert next(row for row in cache.rows() if row.key == broken.key).answer.values == (0.0, 1.0)
        assert verdicts("forget", file, "--unusable") == {"forgotten": 3}
        source_at(judge, tmp_path).judge(pairs(3))
        assert judge.requests - before == 3
        assert verdicts("forget", file, "--judge", "scripted") == {"forgotten": 6}
    for words, message in [
        (("forget", file), "names no verdicts"),
        (("list", str(tmp_path / "none")), "no such file"),
        (("list", str(Path(__file__))), "is no file of verdicts"),
    ]:
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(app, words, catch_exceptions=False)
