"""Conversations that go on after the prompt: what they share is the prompt, and their last turns are the responses."""

from __future__ import annotations

from typing import Any

import pytest
from data_rows import SYSTEM, USER, dropped, make, said_of, says

from alignkit.records import Group, Prompt

THEN = (says("Hm."), {"role": "user", "content": "So?"})
"""Turns that both conversations share."""


@pytest.mark.parametrize("prompt", [[USER], [SYSTEM, USER], "Hi?"])
def test_turns_that_both_share_after_the_prompt_join_it(prompt: Any) -> None:
    group = make({"prompt": prompt, "chosen": [*THEN, says("Yes.")], "rejected": [*THEN, says("No.")]})
    before = (USER,) if isinstance(prompt, str) else tuple(prompt)
    assert group == Group(Prompt(messages=(*before, *THEN)), ("Yes.", "No."), ranks=(0, 1))


def test_turns_that_one_of_them_repeats_with_the_prompt() -> None:
    whole = [USER, *THEN, says("Yes.")]
    for prompt in ([USER], "Hi?"):
        group = make({"prompt": prompt, "chosen": whole, "rejected": [USER, *THEN, says("No.")]})
        assert (group.prompt.messages, group.responses) == ((USER, *THEN), ("Yes.", "No."))
    mixed = make({"prompt": [USER], "chosen": whole, "rejected": [*THEN, says("No.")]})
    assert (mixed.prompt.messages, mixed.responses) == ((USER, *THEN), ("Yes.", "No."))


def test_a_text_prompt_that_the_conversation_lacks() -> None:
    row = {"prompt": "Bye?", "chosen": [USER, says("Yes.")], "rejected": [USER, says("No.")]}
    assert "the response starts with a user turn, which the prompt does not hold" in said_of(row)
    assert "3 turns follow what they share" in said_of({**row, "prompt": "Hi?", "rejected": [SYSTEM, *row["rejected"]]})


@pytest.mark.parametrize("prompt", [{}, {"prompt": [USER]}, {"prompt": "Hi?"}])
def test_conversations_that_part_early_are_refused(prompt: dict[str, Any]) -> None:
    row = {"chosen": [USER, says("A"), USER, says("B")], "rejected": [USER, says("C"), USER, says("D")], **prompt}
    assert "the responses differ before their last turns: 3 turns follow what they share" in said_of(row)


@pytest.mark.parametrize("prompt", [[USER], "Hi?"])
@pytest.mark.parametrize("label", [{}, {"label": True}])
def test_of_a_completion_of_several_turns_the_last_is_the_answer(prompt: Any, label: dict[str, bool]) -> None:
    then = [says("Hm."), {"role": "user", "content": "So?"}, says("Yes.")]
    group = make({"prompt": prompt, "completion": then, **label})
    labels = (True,) if label else None
    assert group == Group(Prompt(messages=(USER, *then[:2])), ("Yes.",), labels=labels)


def test_a_completion_with_a_call_and_its_result() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    then = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "12:00"}]
    group = make({"prompt": [USER], "completion": [*then, says("Noon.")]})
    assert group.responses == ("Noon.",)
    assert group.prompt.messages == (USER, *then)


def test_a_prompt_that_ends_before_the_users_turn() -> None:
    for before in ([SYSTEM], [USER, says("Hm.")]):
        group = make({"prompt": before, "completion": [USER, says("Yes.")]})
        assert (group.prompt.messages, group.responses) == ((*before, USER), ("Yes.",))


@pytest.mark.parametrize("turn", [USER, SYSTEM])
def test_a_completion_that_starts_another_conversation_is_refused(turn: dict[str, str]) -> None:
    row = {"prompt": [{"role": "user", "content": "Bye?"}], "completion": [turn, says("Yes.")]}
    assert f"the response starts with a {turn['role']} turn" in said_of(row)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (USER, "the response is not an assistant turn"),
        ({**says("Yes."), "weight": 0}, "the last turn is marked as not to be learned"),
    ],
)
def test_a_completion_without_an_answer_to_learn(last: dict[str, Any], reason: str) -> None:
    assert dropped({"prompt": [USER], "completion": [says("Hm."), last]}) == [reason]


def test_responses_as_chats_of_several_turns() -> None:
    chats = [[*THEN, says(text)] for text in ("A", "B", "C")]
    group = make({"prompt": [USER], "responses": chats, "ranks": [2, 0, 1]})
    assert group == Group(Prompt(messages=(USER, *THEN)), ("A", "B", "C"), ranks=(2, 0, 1))
    assert "differ before their last turns" in said_of(
        {"prompt": [USER], "responses": [chats[0], [says("A"), *chats[1]]]}
    )
