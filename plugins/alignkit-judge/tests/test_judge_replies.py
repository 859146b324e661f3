"""What counts as a verdict and what does not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from alignkit_judge.questions import Answer, Question
from alignkit_judge.replies import Malformed, expected_score, parse_reply

PAIR = Question("pairwise", "p", ("first", "second"), "c")
THREE = Question("listwise", "p", ("x", "y", "z"), "c")
ONE = Question("pointwise", "p", ("x",), "c")
REASONED = Question("pairwise", "p", ("first", "second"), "c", reasoning=True)


def said(question: Question, **fields: Any) -> str:
    return json.dumps({"id": question.nonce, **fields})


@pytest.mark.parametrize(
    ("verdict", "values"), [("A", (1.0, 0.0)), ("B", (0.0, 1.0)), ("tie", (0.5, 0.5)), ("abstain", None)]
)
def test_pairs(verdict: str, values: tuple[float, float] | None) -> None:
    answer = parse_reply(said(PAIR, verdict=verdict), PAIR)
    assert answer.values == values
    assert answer.reason == ("abstained" if values is None else "")


def test_rankings() -> None:
    best, tied, last = parse_reply(said(THREE, ranking=[["B"], ["C"], ["A"]]), THREE).values or ()
    assert tied > last > best > 0
    values = parse_reply(said(THREE, ranking=[["C", "A"], ["B"]]), THREE).values or ()
    assert values[0] == values[2] > values[1]
    assert parse_reply(said(THREE, ranking=[]), THREE).values is None


def test_scores() -> None:
    assert parse_reply(said(ONE, score=7), ONE).values == (7.0,)
    assert parse_reply(said(ONE, score=None), ONE).values is None


RIGHT, WRONG = said(PAIR, verdict="A"), said(PAIR, verdict="B")


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{RIGHT}\n```",
        f"```\n{RIGHT}\n```",
        f"```JSON\n{RIGHT}\n```",
        f"~~~json\n{RIGHT}\n~~~",
        f"```json {RIGHT} ```",
        f"Here is my verdict:\n```json\n{RIGHT}\n```\nHope this helps {{or not}}!",
        f"My verdict: {RIGHT}",
        f"[{RIGHT}]",
        f"{RIGHT}\n{RIGHT}",
        f"<think>B, surely. {WRONG}</think>\n\n{RIGHT}",
        f"<thinking>Hm. {WRONG}</thinking>\n{RIGHT}",
        f"<THINK>Hm. {WRONG}</Think>{RIGHT}",
        f"First I thought about it, {WRONG} perhaps.\n</think>\n\n{RIGHT}",
        f"\n {RIGHT} \n",
        said(PAIR, verdict="a"),
        said(PAIR, verdict="Response A"),
        said(PAIR, verdict=" A. "),
        said(PAIR, verdict="A", confidence=0.9),
        said(PAIR, verdict="A", reasoning="because </think> is a tag"),
        said(REASONED, verdict="A"),
    ],
)
def test_what_models_add_to_a_verdict_does_not_matter(text: str) -> None:
    assert parse_reply(text, PAIR).values == (1.0, 0.0)


def test_verdicts_as_models_write_them() -> None:
    assert parse_reply(said(PAIR, verdict="Tie"), PAIR).values == (0.5, 0.5)
    assert parse_reply(said(PAIR, verdict="ABSTAIN"), PAIR).values is None
    scores = [parse_reply(said(ONE, score=score), ONE).values for score in (7, 7.0, "7", " 7/10 ", "7.0", "10")]
    assert scores == [(7.0,)] * 5 + [(10.0,)]
    expected = parse_reply(said(THREE, ranking=[["B"], ["C"], ["A"]]), THREE).values
    assert parse_reply(said(THREE, ranking=["b", "Response C", "A"]), THREE).values == expected


def test_reasoning_is_kept_and_is_no_verdict() -> None:
    text = said(REASONED, reasoning=said(REASONED, verdict="B"), verdict="A")
    assert parse_reply(text, REASONED) == Answer((1.0, 0.0), "", said(REASONED, verdict="B"))


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (PAIR, ""),
        (PAIR, "A"),
        (PAIR, "null"),
        (PAIR, '{"verdict": "A"}'),
        (PAIR, '{"id": "0123456789abcdef", "verdict": "A"}'),
        (PAIR, said(PAIR, verdict="C")),
        (PAIR, said(PAIR, verdict=None)),
        (PAIR, said(PAIR, verdict=["A"])),
        (PAIR, said(PAIR, verdict="A or B")),
        (PAIR, said(PAIR, choice="A")),
        (PAIR, RIGHT + WRONG),
        (PAIR, f"{RIGHT} or rather {said(PAIR, verdict='tie')}"),
        (PAIR, f'{RIGHT[:-1]}, "verdict": "B"}}'),
        (PAIR, f"<think>First I thought {RIGHT}"),
        (PAIR, f"</think><think>Again: {RIGHT}"),
        (PAIR, RIGHT[:-3]),
        (PAIR, "{" * 100_000),
        (PAIR, '{"a":' * 100_000),
        (THREE, said(THREE, ranking=[["A"], ["B"]])),
        (THREE, said(THREE, ranking=[["A"], ["B"], ["C"], ["C"]])),
        (THREE, said(THREE, ranking=[["A"], [], ["B"], ["C"]])),
        (THREE, said(THREE, ranking="ABC")),
        (ONE, said(ONE, score=0)),
        (ONE, said(ONE, score=11)),
        (ONE, said(ONE, score=7.5)),
        (ONE, said(ONE, score="7 or 8")),
        (ONE, said(ONE, score=True)),
        (ONE, said(ONE, score=float("nan"))),
    ],
)
def test_everything_else_is_malformed(question: Question, text: str) -> None:
    with pytest.raises(Malformed):
        parse_reply(text, question)


def test_expected_scores() -> None:
    def alternatives(*others: tuple[str, float], token: str = "7") -> list[Any]:
        return [('{"score": 3, "score": ', []), (token, [(text, math.log(p)) for text, p in others]), ("}", [])]

    text = '{"score": 3, "score": 7}'
    assert expected_score(text, 7, alternatives(("7", 0.5), ("9", 0.25), ("x", 0.2))) == pytest.approx(23 / 3)
    assert expected_score(text, 7, alternatives(("7", 0.2), ("x", 0.8))) == 7.0
    assert expected_score(text, 7, alternatives(("7", 0.5), ("11", 0.1), ("0", 0.1), ("\u00b2", 0.1))) == 7.0
    assert expected_score(text, 7, [(text, [("7", 0.0)])]) == 7.0
    assert expected_score(text, 7, [("another text", [])]) == 7.0
    assert expected_score("no score", 7, [("no score", [])]) == 7.0


@pytest.mark.parametrize("broken", [math.nan, math.inf, 5.0, 1e6, None, "x"])
def test_what_is_no_log_probability_leaves_the_score_as_written(broken: Any) -> None:
    text = '{"score": 7}'

    def given(own: Any, other: Any) -> list[Any]:
        return [('{"score": ', []), ("7", [("7", own), ("9", other)]), ("}", [])]

    assert expected_score(text, 7, given(math.log(0.5), broken)) == 7.0
    assert expected_score(text, 7, given(broken, math.log(0.9))) == 7.0
    assert expected_score(text, 7, given(math.log(0.5), math.log(0.5))) == pytest.approx(8.0)
    assert expected_score(text, 7, given(0.0, -math.inf)) == 7.0
    assert expected_score(text, 7, given(1e-6, -9999.0)) == 7.0


def test_alternatives_of_other_types_are_none() -> None:
    text = '{"score": 7}'
    before, after = ('{"score": ', []), ("}", [])
    assert expected_score(text, 7, [before, ("7", [(None, 0.0), (7, 0.0), ("9" * 5000, 0.0)]), after]) == 7.0
    assert expected_score(text, 7, [(None, []), ("7", [("9", 0.0)])]) == 7.0  # type: ignore[list-item]
    halves = [before, ("7", [("7", math.log(0.25)), (" 7", math.log(0.25)), ("9", math.log(0.5))]), after]
    assert expected_score(text, 7, halves) == pytest.approx(8.0)


@pytest.mark.parametrize("text", ["\ud800", '{"id": "\ud800"', '{"score": ' + "9" * 5000 + "}", "[" * 100_000])
def test_text_that_is_no_text_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_reply(text, ONE)
