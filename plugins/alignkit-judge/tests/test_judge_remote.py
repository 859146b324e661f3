"""A judge behind a real server on loopback: every fault ends in a correct verdict or an abstention, and nothing is paid
for twice."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_judge import remote
from alignkit_judge.options import BudgetOptions, JudgeModel, JudgePreferenceOptions, JudgeRewardOptions, RetryOptions
from alignkit_judge.remote import retry_after
from alignkit_judge.source import JudgeReward, JudgeSource
from scripted_judge import ScriptedJudge

from alignkit import OptionsError
from alignkit.components import Context
from alignkit.errors import InputError, StoppedByCheck
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripted_judge import Decide, Seen

KEY = "sk-not-for-anyones-eyes-123456"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.002)


def quality(text: str) -> int:
    return int(text.split("quality ")[1].split(maxsplit=1)[0])


def by_quality(seen: Seen) -> Mapping[str, Any]:
    """The truth: the response with the higher number is better."""
    if "response" in seen.blocks:
        return {"score": quality(seen.blocks["response"])}
    first, second = quality(seen.blocks["response A"]), quality(seen.blocks["response B"])
    return {"verdict": "tie" if first == second else "A" if first > second else "B"}


def pairs(count: int) -> list[Group]:
    """Pairs in which the first is better, the second is better, or neither, in turn."""
    qualities = ((7, 3), (2, 9), (5, 5))
    return [
        Group(
            Prompt.of(f"item {number}"), tuple(f"{side}: quality {q} ." for side, q in zip("xy", values, strict=True))
        )
        for number in range(count)
        for values in (qualities[number % 3],)
    ]


TRUE_RANKS = ((0, 1), (1, 0), (0, 0))


def source_at(judge: ScriptedJudge, cache: Path | None = None, **options: Any) -> JudgeSource:
    config = JudgePreferenceOptions(model="scripted", base_url=judge.base_url, **options)
    config.check()
    return JudgeSource(config, Context(seed=3, cache=cache))


def unreliable(seen: Seen, number: int) -> str:
    """A fault in about 40% of requests, depending on the question and how often it was asked."""
    kinds = {"429": 0.08, "500": 0.08, "slow": 0.01, "cut": 0.06, "garbage": 0.05, "malformed": 0.07, "refusal": 0.05}
    draw = random.Random(f"{seen.nonce}/{number}").random()
    for kind, share in kinds.items():
        if draw < share:
            return kind
        draw -= share
    return ""


def check_faulty_run(count: int, tmp_path: Path) -> None:
    # a reply in time may take seconds on a busy machine, and would count as a slow one
    with ScriptedJudge(by_quality, unreliable, slow=5.0) as judge:
        source = source_at(judge, tmp_path, retry=RetryOptions(timeout=4.0), abstentions="keep")
        judged = source.judge(pairs(count))
        wrong = [g for number, g in enumerate(judged) if g.ranks not in (None, TRUE_RANKS[number % 3])]
        assert not wrong
        decided = sum(group.ranks is not None for group in judged)
        assert count > decided > 0.9 * count
        replies = sum(judge.counts[kind] for kind in ("served", "malformed", "refusal"))
        budget = source.panel.budget
        assert (budget.requests, budget.paid, budget.timed_out) == (judge.requests, replies, judge.counts["slow"])
        assert all(judge.counts[kind] for kind in ("429", "500", "cut", "garbage", "malformed", "refusal"))
        assert f"{judge.requests} requests, {replies} paid" in source.explain()
        assert f"{count - decided} abstained" in source.explain()
        again = source_at(judge, tmp_path, abstentions="keep")
        assert [group.ranks for group in again.judge(pairs(count))] == [group.ranks for group in judged]
        assert again.panel.budget.requests == 0


def test_faults_end_in_right_verdicts_or_abstentions(tmp_path: Path) -> None:
    check_faulty_run(45, tmp_path)


@pytest.mark.slow
def test_faults_over_500_items(tmp_path: Path) -> None:
    check_faulty_run(500, tmp_path)


def test_a_server_that_is_down_stops_the_run_and_the_next_run_continues(tmp_path: Path) -> None:
    down = [False]

    def fault(seen: Seen, number: int) -> str:
        return "500" if down[0] and judge.counts["served"] >= 10 else ""

    with ScriptedJudge(by_quality, fault) as judge:
        down[0] = True
        options: dict[str, Any] = {"concurrency": 2, "retry": RetryOptions(attempts=2, max_failures=3)}
        with pytest.raises(StoppedByCheck, match="3 questions in a row"):
            source_at(judge, tmp_path, **options).judge(pairs(12))
        down[0] = False
        source = source_at(judge, tmp_path, **options)
        assert [group.ranks for group in source.judge(pairs(12))] == list(TRUE_RANKS) * 4
        assert source.panel.budget.requests == 24 - 10
        assert source.panel.cached == 10


def test_one_question_that_is_never_answered_abstains_and_is_asked_again(tmp_path: Path) -> None:
    def fault(seen: Seen, number: int) -> str:
        return "500" if seen.blocks["prompt"] == "item 1" and number < 2 else ""

    with ScriptedJudge(by_quality, fault) as judge:
        retry = RetryOptions(attempts=2)
        source = source_at(judge, tmp_path, retry=retry)
        assert [group.ranks for group in source.judge(pairs(2))] == [(0, 1), None]
        assert "status 500" in source.explain()
        assert [group.ranks for group in source_at(judge, tmp_path, retry=retry).judge(pairs(2))] == [(0, 1), (1, 0)]


def test_retry_after_holds_all_requests_back() -> None:
    times: list[float] = []

    def fault(seen: Seen, number: int) -> str:
        times.append(time.monotonic())
        return "429" if len(times) == 1 else ""

    with ScriptedJudge(by_quality, fault, retry_after="0.4") as judge:
        source_at(judge, concurrency=1).judge(pairs(1))
    assert times[1] - times[0] >= 0.4


def test_a_server_that_wants_too_long_a_wait_is_not_waited_for() -> None:
    with ScriptedJudge(by_quality, lambda seen, number: "429", retry_after="3600") as judge:
        source = source_at(judge, retry=RetryOptions(max_wait=1))
        assert source.judge(pairs(1))[0].ranks is None
        assert "asks to wait 3600 s" in source.explain()
        assert judge.requests == 2


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert retry_after({"retry-after": "1.5"}, 0) == 1.5
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40) == 60
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 40) == 0
    assert [retry_after(headers, 0) for headers in ({}, {"retry-after": "soon"})] == [0, 0]


@pytest.mark.parametrize(
    ("limits", "expected"), [({"requests": 7}, 7), ({"tokens": 3000}, None), ({"money": 0.003}, None)]
)
def test_a_budget_stops_cleanly_and_what_is_done_is_kept(
    limits: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"concurrency": 2, "price_in": 1.0, "price_out": 1.0, "reply_tokens": 32}
    with ScriptedJudge(by_quality) as judge:
        with pytest.raises(StoppedByCheck, match=r"(\d+) of 24 questions are answered, \d+ are missing") as stop:
            source_at(judge, tmp_path, budget=BudgetOptions(**limits), **options).judge(pairs(12))
        first = judge.requests
        assert 0 < first < 24
        assert expected is None or first == expected
        assert f"{first} of 24" in str(stop.value)
        assert stop.value.exit_code == 3
        source = source_at(judge, tmp_path, **options)
        assert [group.ranks for group in source.judge(pairs(12))] == list(TRUE_RANKS) * 4
        assert judge.requests == 24
        used = source_at(judge, budget=BudgetOptions(**limits, then="use"), **options)
        ranks = [group.ranks for group in used.judge(pairs(12))]
        assert None in ranks
        assert all(found in (None, TRUE_RANKS[number % 3]) for number, found in enumerate(ranks))
        if "tokens" in limits:
            assert used.panel.budget.tokens <= limits["tokens"]
        if "money" in limits:
            assert used.panel.budget.money <= limits["money"]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_judge_remote import pairs, JudgePreferenceOptions, JudgeSource, Context
config = JudgePreferenceOptions(model="scripted", base_url=sys.argv[1], concurrency=2)
JudgeSource(config, Context(seed=3, cache=Path(sys.argv[2]))).judge(pairs(30))
"""


def test_a_killed_run_pays_only_for_the_rest(tmp_path: Path) -> None:
    def unhurried(seen: Seen) -> Mapping[str, Any]:
        time.sleep(0.02)
        return by_quality(seen)

    with ScriptedJudge(unhurried) as judge:
        words = [sys.executable, "-c", CHILD, judge.base_url, str(tmp_path), str(Path(__file__).parent)]
        child = subprocess.Popen(words)
        while judge.counts["served"] < 20 and child.poll() is None:
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        with sqlite3.connect(tmp_path / "verdicts.sqlite") as database:
            kept = database.execute("SELECT count(*) FROM verdicts").fetchone()[0]
        database.close()
        before = judge.requests
        assert before - 4 <= kept <= before < 60
        judge.decide = by_quality
        source = source_at(judge, tmp_path)
        assert [group.ranks for group in source.judge(pairs(30))] == list(TRUE_RANKS) * 10
        assert (source.panel.cached, source.panel.budget.paid) == (kept, 60 - kept)


def test_the_key_comes_from_the_environment_and_shows_up_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def echo(seen: Seen) -> Mapping[str, Any]:
        return {"reasoning": f"my key is {seen.key}", **by_quality(seen)}

    caplog.set_level(logging.DEBUG)
    with ScriptedJudge(echo) as judge:
        source = source_at(judge, tmp_path, key_env="JUDGE_KEY", reasoning=True)
        judged = source.judge(pairs(2))
        assert {seen.key for seen in judge.seen} == {KEY}
        judge.fault = lambda seen, number: "401"
        with pytest.raises(InputError, match="check the variable JUDGE_KEY") as refused:
            source_at(judge, key_env="JUDGE_KEY").judge(pairs(1))
    everything = [json.dumps([group.to_json() for group in judged]), source.explain(), str(refused.value), caplog.text]
    everything += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert "[redacted]" in str(refused.value)
    assert not any(KEY in text for text in everything)


def test_no_key_is_sent_to_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedJudge(by_quality) as judge:
        source_at(judge).judge(pairs(1))
    assert {seen.key for seen in judge.seen} == {"none"}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "model"),
        ({"model": "m", "base_url": "localhost:80"}, "base_url"),
        ({"model": "m", "base_url": f"http://u:{KEY}@localhost/v1"}, "base_url"),
        ({"model": "m", "base_url": f"http://localhost/v1?api-key={KEY}"}, "base_url"),
        ({"model": "m", "base_url": f"http://localhost/v1#{KEY}"}, "base_url"),
        ({"model": "m", "base_url": "http://h/v1", "key_env": KEY}, "key_env"),
        ({"model": "m"}, "key_env"),
        ({"model": "/no/such/folder", "backend": "local"}, "model"),
        ({"model": "m", "base_url": "http://h/v1", "samples": 3}, "samples"),
        ({"model": "m", "base_url": "http://h/v1", "budget": {"money": 1}}, "budget.money"),
        ({"model": "m", "base_url": "http://h/v1", "constitution": "/no/file"}, "constitution"),
        ({"model": "m", "judges": [{"model": "n", "base_url": "http://h/v1"}]}, "model"),
        ({"judges": [{"model": "n", "base_url": "h"}]}, "judges.0.base_url"),
        ({"base_url": "http://h/v1", "judges": [{"model": "n", "base_url": "http://h/v1"}]}, "base_url"),
    ],
)
def test_options_that_cannot_work_are_refused(
    options: dict[str, Any], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(OptionsError) as refused:
        JudgePreferenceOptions(**options)
    assert [".".join(problem.key) for problem in refused.value.problems] == [where]
    assert refused.value.fix
    assert KEY not in str(refused.value)


def test_scores_are_expected_values_where_the_server_gives_logprobs() -> None:
    def completion(seen: Seen, fault: str) -> dict[str, Any]:
        body = plain(seen, fault)
        text = body["choices"][0]["message"]["content"]
        tokens = [text[: text.index('"score": ') + 9], "8", "}"]
        others = [{"token": "8", "logprob": -0.6931471805599453}, {"token": "6", "logprob": -0.6931471805599453}]
        listed = [{"token": token, "logprob": 0.0, "top_logprobs": others if token == "8" else []} for token in tokens]
        body["choices"][0]["logprobs"] = {"content": listed}
        return body

    with ScriptedJudge(lambda seen: {"score": 8}) as judge:
        plain, judge.completion = judge.completion, completion  # type: ignore[method-assign]
        config = JudgeRewardOptions(model="scripted", base_url=judge.base_url, top_logprobs=5)
        assert JudgeReward(config).score(pairs(1)) == [[pytest.approx(7.0), pytest.approx(7.0)]]
        assert judge.seen[0].payload["top_logprobs"] == 5


def test_the_reward_averages_judges_and_samples_and_abstains_with_any_of_them() -> None:
    def decide(seen: Seen) -> Mapping[str, Any]:
        offset = {"one": 0, "two": 1}[seen.payload["model"]] + seen.payload.get("seed", 0)
        score = quality(seen.blocks["response"]) + offset
        return {"score": None if seen.payload["model"] == "two" and score > 9 else score}

    with ScriptedJudge(decide) as judge:
        judges = tuple(JudgeModel(model=name, base_url=judge.base_url, temperature=1.0) for name in ("one", "two"))
        reward = JudgeReward(JudgeRewardOptions(judges=judges, samples=2))
        assert reward.score(pairs(2)) == [[8.0, 4.0], [3.0, None]]
        figures = reward.figures()
        assert (figures["judge_abstained"], figures["judge_requests"], figures["judge_money"]) == (0.25, 16, 0)
        assert figures["judge_tokens"] > 0


def test_requests_say_what_the_options_say() -> None:
    with ScriptedJudge(by_quality) as judge:
        for structured in ("json-schema", "json-object", "text"):
            source_at(judge, structured=structured, temperature=0.5, reply_tokens=99).judge(pairs(1))
    forms = [seen.payload.get("response_format") for seen in judge.seen[::2]]
    assert [form and form["type"] for form in forms] == ["json_schema", "json_object", None]
    schema = forms[0]["json_schema"]["schema"]
    assert schema["required"] == ["id", "verdict"]
    assert schema["additionalProperties"] is False
    assert {(seen.payload["temperature"], seen.payload["max_tokens"]) for seen in judge.seen} == {(0.5, 99)}


def test_decisions_are_kept_apart_by_judge_criterion_and_order(tmp_path: Path) -> None:
    decide: Decide = by_quality
    with ScriptedJudge(decide) as judge:
        for options in ({}, {"rubric": "honest"}, {"temperature": 0.1}, {"reasoning": True}):
            before = judge.requests
            with_reason = {"reasoning": "r"} if "reasoning" in options else {}
            judge.decide = lambda seen, extra=with_reason: {**extra, **by_quality(seen)}
            source_at(judge, tmp_path, **options).judge(pairs(1))
            assert judge.requests == before + 2
        source_at(judge, tmp_path, orders="one").judge(pairs(1))
        assert judge.requests == 8
