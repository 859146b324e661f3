"""Reward functions as TRL's users write them: what they are given, and one clear error for each wrong answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_reward.function import FunctionReward
from alignkit_reward.options import FunctionOptions

from alignkit import Group, InputError, PluginError, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = Group(Prompt(text="two and two", meta={"answer": 4, "prompt": "hidden"}), ("four", "five"))
CHAT = Group(Prompt.of([{"role": "user", "content": "hi"}], {"topic": "greeting"}), ("hello",))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], FunctionReward]:
    """The source of a function that is put where `math:under_test` finds it."""

    def make(function: Any) -> FunctionReward:
        monkeypatch.setattr(math, "under_test", function, raising=False)
        options = FunctionOptions(function="math:under_test")
        options.check()
        return FunctionReward(options)

    return make


def test_it_is_called_as_trl_calls_it(source: Callable[[Any], FunctionReward]) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.5, -1, True]  # type: ignore[list-item]

    assert source(reward).score([PLAIN, CHAT]) == [[0.5, -1.0], [1.0]]
    assert seen == {
        "prompts": ["two and two", "two and two", [{"role": "user", "content": "hi"}]],
        "completions": ["four", "five", [{"role": "assistant", "content": "hello"}]],
        "answer": [4, 4, None],
        "topic": [None, None, "greeting"],
    }


def test_a_function_without_keywords_gets_what_it_names(source: Callable[[Any], FunctionReward]) -> None:
    assert source(lambda completions, answer: [float(a) for a in answer]).score([PLAIN]) == [[4.0, 4.0]]
    with pytest.raises(PluginError, match=r"needs 'solution', which is not a column of the prompts \(answer\)"):
        source(lambda completions, solution: []).score([PLAIN])


def test_other_forms_of_result(source: Callable[[Any], FunctionReward]) -> None:
    async def awaited(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    assert source(awaited).score([PLAIN]) == [[4.0, 4.0]]
    assert source(lambda **_: torch.tensor([1.0, 2.0])).score([PLAIN]) == [[1.0, 2.0]]
    assert source(lambda **_: (None, 2)).score([PLAIN]) == [[None, 2.0]]
    assert source(lambda **_: 1 / 0).score([]) == []


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "returned 1 rewards for 2 responses"),
        (None, "returned NoneType, not a list"),
        (1.0, "returned float, not a list"),
        ([math.nan, math.inf], "returned nan, not a finite number, for the row with .* response 'four'"),
        ([1.0, "2"], "returned '2', not a finite number"),
        ([[1.0], 1.0], r"returned \[1.0\], not a finite number"),
    ],
)
def test_wrong_results(source: Callable[[Any], FunctionReward], result: Any, message: str) -> None:
    with pytest.raises(PluginError, match=f"^math:under_test {message}"):
        source(lambda **_: result).score([PLAIN])


def test_it_abstains_on_a_text_that_it_can_not_score(
    source: Callable[[Any], FunctionReward], caplog: pytest.LogCaptureFixture
) -> None:
    def picky(completions: list[str], **_: Any) -> list[float]:
        return [{"four": 1.0}[text] for text in completions]

    assert source(picky).score([PLAIN]) == [[1.0, None]]
    assert source(lambda **_: [math.inf, 2.0]).score([PLAIN]) == [[None, 2.0]]
    raised, infinite = caplog.messages
    assert raised.startswith("no score for 1 of 2 responses: math:under_test raised KeyError: 'five' (the row with")
    assert infinite.endswith(
        "returned inf, not a finite number, for the row with prompt 'two and two', response 'four'"
    )
    with pytest.raises(PluginError, match=r"raised ZeroDivisionError: division by zero .*response 'four'"):
        source(lambda **_: 1 / 0).score([PLAIN])
    with pytest.raises(MemoryError):
        source(lambda **_: exhausted()).score([PLAIN])


def exhausted() -> list[float]:
    raise MemoryError


def test_what_cannot_work_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "under_test", lambda completion_ids, **_: [], raising=False)
    with pytest.raises(InputError, match="requires 'completion_ids'"):
        FunctionOptions(function="math:under_test").check()
    with pytest.raises(InputError, match="has no function"):
        FunctionOptions(function="math:absent").check()
    FunctionOptions(function="builtins:max").check()
