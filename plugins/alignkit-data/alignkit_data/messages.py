"""Finds prompts and responses in a row's texts, messages or whole conversations.

As in TRL, chosen and rejected without a prompt get their common beginning as the prompt. Unlike in TRL, it ends at the
last `Assistant:` marker, or without one before the last word, so that words (or half of one) that both responses happen
to start with don't end up in the prompt.
"""

from __future__ import annotations

import re
from string import Formatter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Message

Content = str | list[dict[str, Any]]
"""A text or a list of messages."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant"}
_ASSISTANT_MARKER = re.compile(r"(?:^|\n)Assistant:")


class Unusable(Exception):  # noqa: N818
    """A well-formed row with nothing to learn from; reasons are counted."""


def kind(value: Any) -> str:
    """The kind of a value, in words for an error."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


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
        return [_message(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{name} is {kind(value)}, expected text or messages")


def text_of(value: Any, name: str) -> str:
    """The text that a column holds. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {kind(value)}, expected text")
    return value


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, dict):
        raise ValueError(f"{name} is {kind(item)}, expected a message with 'role' and 'content'")
    keys = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    if missing := [key for key in keys if key not in item]:
        raise ValueError(f"{name} is a message without {missing[0]!r}, found {sorted(item)}")
    role, content = item[keys[0]], item[keys[1]]
    if not isinstance(role, str):
        raise ValueError(f"{name}.{keys[0]} is {kind(role)}, expected text")
    others = {key: value for key, value in item.items() if key not in keys and value is not None}
    if not isinstance(content, str | list) and not (content is None and "tool_calls" in others):
        raise ValueError(f"{name}.{keys[1]} is {kind(content)}, expected text")
    return {"role": _ROLES.get(role.lower(), role.lower()), "content": content, **others}


def split_last_turn(messages: list[Message]) -> tuple[list[Message], str]:
    """The last assistant turn of a conversation and the messages before it.

    Raises:
        Unusable: there is no assistant turn, or nothing before it.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise Unusable("no assistant turn")
    if turns[-1] == 0:
        raise Unusable("no prompt before the response")
    return messages[: turns[-1]], _assistant_text(messages[turns[-1] :][:1])


def part(prompt: Content | None, answers: Sequence[Content]) -> tuple[Content, list[str]]:
    """The prompt, and what each answer adds to it. Answers may repeat the prompt, or contain it if it is None.

    Raises:
        ValueError: some answers are texts and others messages.
        Unusable: no prompt is found, or more than one turn follows it.
    """
    texts = [answer for answer in answers if isinstance(answer, str)]
    chats = [answer for answer in answers if not isinstance(answer, str)]
    if texts and chats:
        raise ValueError("some responses are texts and others messages, expected one kind")
    return _part_chats(prompt, chats) if chats else _part_texts(prompt, texts)


def _part_texts(prompt: Content | None, texts: list[str]) -> tuple[Content, list[str]]:
    if prompt is None:
        prompt = _common_text(texts)
    elif not (isinstance(prompt, str) and len(texts) > 1 and all(text.startswith(prompt) for text in texts)):
        return prompt, texts
    return prompt, [text[len(prompt) :] for text in texts]


def _common_text(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    differ = (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    common = first[: next(differ, len(first))]
    markers = [match.end() for match in _ASSISTANT_MARKER.finditer(common)]
    end = markers[-1] if markers else max(common.rfind(space) for space in " \n\t")
    if end <= 0:
        raise Unusable("no prompt, and no common beginning of the responses")
    return common[:end]


def _part_chats(prompt: Content | None, chats: list[list[Message]]) -> tuple[Content, list[str]]:
    if not all(chats):
        raise Unusable("empty response")
    if prompt is None:
        prompt = _common_messages(chats)
    elif isinstance(prompt, str):
        prompt = _messages_of_text(prompt, chats)
    starts = len(prompt) if all(chat[: len(prompt)] == prompt for chat in chats) else 0
    return prompt, [_assistant_text(chat[starts:]) for chat in chats]


def _common_messages(chats: list[list[Message]]) -> list[Message]:
    shortest = min(len(chat) for chat in chats) - 1
    count = 0
    while count < shortest and all(chat[count] == chats[0][count] for chat in chats):
        count += 1
    if count == 0:
        raise Unusable("no prompt, and no common beginning of the responses")
    return chats[0][:count]


def _messages_of_text(prompt: str, chats: list[list[Message]]) -> list[Message]:
    before = chats[0][:-1]
    if before and before[-1]["content"] == prompt and all(chat[:-1] == before for chat in chats):
        return before
    return [{"role": "user", "content": prompt}]


def _assistant_text(messages: list[Message]) -> str:
    if len(messages) != 1:
        raise Unusable("more than one turn after the prompt" if messages else "empty response")
    if messages[0]["role"] != "assistant":
        raise Unusable("the response is not an assistant turn")
    return text_of(messages[0]["content"], "the response's content")


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
