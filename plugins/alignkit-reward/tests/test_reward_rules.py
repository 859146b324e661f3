"""Rules against scores worked out by hand, and the answer rule against 5276 labels of real model answers."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from alignkit_reward.options import AnswerRule, JSONRule, KeywordRule, LengthRule, RulesOptions
from alignkit_reward.rules import RulesReward

from alignkit import Group, InputError, Prompt

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not on this machine")


def score(response: str, meta: Any = None, **rules: Any) -> float | None:
    options = RulesOptions(**rules)
    options.check()
    return RulesReward(options).score([Group(Prompt.of("p", meta), (response,))])[0][0]


@pytest.mark.parametrize(
    ("rule", "words", "expected"),
    [
        (LengthRule(minimum=2, maximum=4), 1, 0.0),
        (LengthRule(minimum=2, maximum=4), 2, 1.0),
        (LengthRule(minimum=2, maximum=4), 4, 1.0),
        (LengthRule(minimum=2, maximum=4), 5, 0.0),
        (LengthRule(target=4), 4, 1.0),
        (LengthRule(target=4), 3, 0.75),
        (LengthRule(target=4), 6, 0.5),
        (LengthRule(target=4), 0, 0.0),
        (LengthRule(target=4), 20, 0.0),
        (LengthRule(target=4, maximum=5, weight=2.0), 5, 1.5),
        (LengthRule(minimum=1), 0, 0.0),
    ],
)
def test_length(rule: LengthRule, words: int, expected: float) -> None:
    assert score("word " * words, length=rule) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("She was happy, happy, HAPPY.", 1.0),
        ("She smiled at her friend.", 2.0),
        ("They made friends.", 0.0),  # "mad" is no part of "made"; "friend" stands for the whole word only
        ("A mad happy dog", 0.0),
        ("mad sad", -2.0),
        ("unhappy", 0.0),
        ("", 0.0),
    ],
)
def test_keywords(response: str, expected: float) -> None:
    rule = KeywordRule(good=("happy", "smil*", "friend", "happy"), bad=("mad", "sad"))
    assert score(response, keywords=rule) == expected


def test_patterns_json_and_sums() -> None:
    fewer_than_three = r"\A(?!(?:[^.!?]*[.!?]){3})"
    assert score("One. Two.", patterns={fewer_than_three: -2.0}) == -2.0
    assert score("One. Two! Three?", patterns={fewer_than_three: -2.0}) == 0.0
    assert score("[1, 2]", json=JSONRule()) == 1.0
    assert score("[1, 2", json=JSONRule()) == 0.0
    assert score('{"a": 1}', json=JSONRule(keys=("a",))) == 1.0
    assert score('{"b": 1}', json=JSONRule(keys=("a",), weight=3.0)) == 0.0
    assert score("[1]", json=JSONRule(keys=("a",))) == 0.0
    assert score("[" * 100_000, json=JSONRule()) == 0.0
    # 0.5 * (1 - 1/4) + 2 * 1 - 1
    total = score(
        "happy big dog",
        length=LengthRule(target=4, weight=0.5),
        keywords=KeywordRule(good=("happy",), weight=2.0),
        patterns={"dog": -1.0, "cat": 5.0},
    )
    assert total == 0.5 * 0.75 + 2 - 1


@pytest.mark.parametrize(
    ("response", "right", "expected"),
    [
        ("so 3 + 4\nA: 7", "7", 1.0),
        ("so 3 + 4\nA: 8", "7", 0.0),
        ("A: 8\nno, A: 7", 7, 0.0),  # "A:" must begin its line
        ("A: 8\nA: 7", 7, 1.0),
        ("#### 1,234.50", 1234.5, 1.0),
        ("Answer: $-3", "the text ends on\n#### -3", 1.0),
        ("A: 7", "A: 8\nA: 7", 1.0),
        ("7", "7", 0.0),
        ("A: 0.1", "0.10000000000000001", 1.0),
        ("A: 1000000.001", "1000000", 0.0),
        ("Answer: **42**", "42", 1.0),
        ("**Answer:** 42", "42", 1.0),
        ("Answer: 42 apples", "42", 1.0),
        ("#### 42/2", "42", 0.0),
        ("#### 42/2", "21", 1.0),
        ("Answer: 42+1", "42", 0.0),
        ("Answer: 42, 43", "42", 0.0),
        ("Answer: 41-42", "41", 0.0),
        ("Answer: 4.2e1", 42, 1.0),
        ("Answer: -$5", "-5", 1.0),
        ("Answer: $-5", "-5", 1.0),
        ("Answer: \u22125", "-5", 1.0),
        ("#### - 5", "-5", 1.0),
        ("Answer: 5", "-5", 0.0),
        ("#### 1 234.5", "1,234.50", 1.0),
        ("#### 1.234,50", "1,234.50", 1.0),
        ("#### 1,234.5.", "1,234.50", 1.0),
        ("#### 1,234,567", 1234567, 1.0),
        ("#### 1,2,3", 123, 0.0),
        ("Answer: .5", "#### 0.5", 1.0),
        ("Answer: 1/2", 0.5, 1.0),
        ("Answer: 1 1/2", 1.5, 1.0),
        ("Answer: 0,5", 0.5, 1.0),
        ("Answer: 1/0", 1, 0.0),
        ("Answer: " + "9" * 500, 42, 0.0),
    ],
)
def test_answer(response: str, right: Any, expected: float) -> None:
    assert score(response, {"final_answer": right}, answer=AnswerRule()) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("\\boxed{42}", 1.0), ("\\boxed{\\$42}", 1.0), ("\\boxed{x+1}", 0.0), ("\\boxed{}", 0.0), ("nothing", 0.0),
        ("\\boxed{4.2.}", 0.0), ("\\boxed{,}", 0.0), ("\\boxed{nan}", 0.0), ("\\boxed{42} or \\boxed{he}", 0.0),
    ],
)  # fmt: skip
def test_what_is_no_number_is_a_wrong_answer(response: str, expected: float) -> None:
    rule = AnswerRule(pattern=r"\\boxed\{(.*?)\}")
    assert score(response, {"final_answer": "42"}, answer=rule) == expected


def test_answer_without_its_column() -> None:
    with pytest.raises(InputError, match=r"answer\.column: the prompt has no column 'final_answer', but question"):
        score("A: 1", {"question": "?"}, answer=AnswerRule())
    with pytest.raises(InputError, match="'unknown' is not a number"):
        score("A: 1", {"final_answer": "unknown"}, answer=AnswerRule())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "no rule is given"),
        ({"patterns": {"(": 1.0}}, "patterns: '\\(' is not a regular expression"),
        ({"answer": AnswerRule(pattern="A: [0-9]+")}, "answer.pattern: needs exactly one group"),
        ({"length": LengthRule(minimum=5, maximum=4)}, "length.maximum: is below the minimum"),
        ({"keywords": KeywordRule()}, "keywords: has no words"),
    ],
)
def test_wrong_rules_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RulesOptions(**rules).check()


def _lines(name: str) -> list[dict[str, Any]]:
    opened = gzip.open if name.endswith(".gz") else open
    with opened(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@needs_data
def test_answers_agree_with_published_labels() -> None:
    final = {row["prompt"][0]["content"]: row["final_answer"] for row in _lines("gsm8k_test_100.jsonl")}
    rows = _lines("gsm8k_model_solutions_kto.jsonl.gz")
    by_question: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_question[row["prompt"][0]["content"]].append(row)
    checked = 0
    source = RulesReward(RulesOptions(answer=AnswerRule()))
    for question, answers in by_question.items():
        texts = tuple(row["completion"][0]["content"] for row in answers)
        labels = [row["label"] for row in answers]
        # Beyond the 100 published answers, one that is labelled right states the number for the others.
        right = final.get(question) or next((text for text, label in zip(texts, labels, strict=True) if label), None)
        if right is not None:
            (scores,) = source.score([Group(Prompt.of(question, {"final_answer": right}), texts)])
            assert scores == [float(label) for label in labels], question
            checked += len(texts)
    assert len(rows) == 5276
    assert checked == 3680
