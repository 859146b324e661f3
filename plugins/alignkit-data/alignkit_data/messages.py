"""Finds prompts and responses in a row's texts, messages or whole conversations.

A prompt that is given is never taken off a text. Without one, chosen and rejected get their common beginning as the
prompt, as in TRL. Unlike in TRL, it ends at the last `Assistant:` marker, or without one before the last word, so that
words (or half of one) that both responses happen to start with don't end up in the prompt.
"""

from __future__ import annotations

import re
from dataclasses import replace
from string import Formatter
from typing import TYPE_CHECKING, Any

from alignkit import Group, Prompt, content_text, message_text
from alignkit_data.turns import TURN_FIELDS, kind, messages_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Message

Content = str | list[dict[str, Any]]
"""A text or a list of messages."""

Answer = str | dict[str, Any]
"""A text, or the assistant's message."""

_ASSISTANT_MARKER = re.compile(r"(?:^|\n)Assistant:")


class Unusable(Exception):  # noqa: N818
    """A well-formed row with nothing to learn from; reasons are counted."""


def content_of(value: Any, name: str) -> Content:
    """The text or the messages that a column holds.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list | tuple):
        parts = all(isinstance(item, dict) and "type" in item and not {"role", "from"} & set(item) for item in value)
        return content_text(value) or "" if value and parts else messages_of(value, name)
    raise ValueError(f"{name} is {kind(value)}, expected text or messages")


def text_of(value: Any, name: str) -> str:
    """The text that a column holds. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {kind(value)}, expected text")
    return value


def split_last_turn(messages: list[Message]) -> tuple[list[Message], Message]:
    """The last turn of a conversation, an assistant's, and the messages before it.

    Raises:
        Unusable: the last turn is not an assistant's or not to be learned, or there is nothing before it.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise Unusable("no assistant turn")
    if messages[-1]["role"] != "assistant":
        raise Unusable(f"the last turn is not an answer: its role is {messages[-1]['role']}")
    _check_learned(messages[-1])
    if len(messages) == 1:
        raise Unusable("no prompt before the response")
    return messages[:-1], messages[-1]


def _check_learned(turn: Message) -> None:
    if any(turn.get(name) in (0, False) for name in _LEARN_FLAGS if name in turn):
        raise Unusable("the last turn is marked as not to be learned")


_LEARN_FLAGS = ("weight", "train", "loss")
"""Fields of a message that exclude it from training where they are 0 or false (OpenAI, Axolotl, ms-swift)."""


def answer_text(answer: Answer) -> str:
    """What an answer says."""
    return answer if isinstance(answer, str) else message_text(answer)


def group_of(prompt: Content, answers: Sequence[Answer], **fields: Any) -> Group:
    """The group; turns that are more than text also stand in `meta.turns`."""
    group = Group(Prompt.of(prompt), tuple(map(answer_text, answers)), **fields)
    turns = [None if isinstance(answer, str) or not TURN_FIELDS & set(answer) else answer for answer in answers]
    return replace(group, meta={**group.meta, "turns": turns}) if any(turns) else group


def part(prompt: Content | None, answers: Sequence[Content]) -> tuple[Content, Sequence[Answer]]:
    """The prompt, and what each answer adds to it. Chats may repeat the prompt; without a prompt, all answers hold it.
    Turns that all chats share before their last ones are part of the prompt.

    Raises:
        ValueError: some answers are texts and others messages, or chats differ in more than their last turn.
        Unusable: no prompt is found.
    """
    texts = [answer for answer in answers if isinstance(answer, str)]
    chats = [answer for answer in answers if not isinstance(answer, str)]
    if texts and chats:
        raise ValueError("some responses are texts and others messages, expected one kind")
    return _part_chats(prompt, chats) if chats else _part_texts(prompt, texts)


def _part_texts(prompt: Content | None, texts: list[str]) -> tuple[Content, list[str]]:
    if prompt is not None:
        return prompt, texts
    prompt = _common_text(texts)
    return prompt, [text[len(prompt) :] for text in texts]


def _common_text(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    differ = (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    common = first[: next(differ, len(first))]
    if common.strip() in (text.strip() for text in texts):
        common = common.rstrip()
    markers = [match.end() for match in _ASSISTANT_MARKER.finditer(common)]
    end = markers[-1] if markers else max(common.rfind(space) for space in " \n\t")
    if end <= 0:
        raise Unusable("no prompt, and no common beginning of the responses")
    return common[:end]


def _part_chats(prompt: Content | None, chats: list[list[Message]]) -> tuple[Content, list[Message]]:
    if not all(chats):
        raise Unusable("empty response")
    if isinstance(prompt, str):
        common = _common_messages(chats)
        holds_it = chats[0][0]["role"] != "assistant" and any(message["content"] == prompt for message in common)
        prompt = None if holds_it else [{"role": "user", "content": prompt}]
    given = prompt or []
    rests = [chat[len(given) :] if len(chat) > len(given) and chat[: len(given)] == given else chat for chat in chats]
    shared = _common_messages(rests)
    if not (given or shared):
        raise Unusable("no prompt, and no common beginning of the responses")
    if given and shared and (shared[0]["role"] == "system" or shared[0]["role"] == given[-1]["role"] == "user"):
        raise ValueError(f"the response starts with a {shared[0]['role']} turn, which the prompt does not hold")
    return [*given, *shared], [_assistant_turn(rest[len(shared) :]) for rest in rests]


def _common_messages(chats: list[list[Message]]) -> list[Message]:
    """The messages that all chats begin with, without the last one of any."""
    shortest = min(len(chat) for chat in chats) - 1
    count = 0
    while count < shortest and all(chat[count] == chats[0][count] for chat in chats):
        count += 1
    return chats[0][:count]


def _assistant_turn(messages: list[Message]) -> Message:
    """The one message that is left of a chat."""
    if len(messages) > 1:
        raise ValueError(f"the responses differ before their last turns: {len(messages)} turns follow what they share")
    if messages[0]["role"] != "assistant":
        raise Unusable("the response is not an assistant turn")
    _check_learned(messages[0])
    return messages[0]


def template_parts(template: str) -> list[tuple[str, str]]:
    """(text, name of the column after it, or "") of each part of a template such as `{context} {prompt}`.

    Raises:
        ValueError: a brace is left open, or a field is not a column's plain name, as `{prompt[0]}` and `{prompt!r}`.
    """
    parts = []
    for text, name, form, conversion in Formatter().parse(template):
        plain = name is None or (re.fullmatch(r"[^\W\d][\w -]*", name) and not form and not conversion)
        if not plain:
            shown = "".join([name or "", f"!{conversion}" if conversion else "", f":{form}" if form else ""])
            raise ValueError(f"{{{shown}}} is not the name of a column")
        parts.append((text, name or ""))
    return parts


def filled_template(template: str, values: Mapping[str, Any]) -> Content:
    """The prompt that a template makes from a row's columns; if `prompt` is a chat, its last message is filled.

    Raises:
        ValueError: a column that the template names is missing or null.
    """
    fields = dict(values)
    prompt = values.get("prompt")
    chat = None if prompt is None or isinstance(prompt, str) else content_of(prompt, "prompt")
    if chat:
        fields["prompt"] = chat[-1]["content"]  # type: ignore[index]
    parts = template_parts(template)
    for _, name in parts:
        if name and fields.get(name) is None:
            raise ValueError(f"the template names {name!r}, which this row lacks; it has {', '.join(fields)}")
    text = "".join(text + (str(fields[name]) if name else "") for text, name in parts)
    return text if not chat else [*chat[:-1], {**chat[-1], "content": text}]  # type: ignore[dict-item]
