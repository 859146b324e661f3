"""Messages in one form, whatever program wrote them: roles, text parts, reasoning and tool calls.

A tool call is OpenAI's `{"type": "function", "function": {"name", "arguments"}}` with arguments as an object, which
chat templates expect. ShareGPT's `function_call` (in ms-swift `tool_call`) becomes a call of the assistant, and
`observation` (`tool_response`) the result of a tool. Reasoning is `reasoning_content`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from alignkit import content_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Message

_RESULT_ROLES = ("observation", "function", "tool_response", "function_response")
_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "model", "bot", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(_RESULT_ROLES, "tool"),
}
_CALL_ROLES = {"function_call", "tool_call"}
_REASONING = ("reasoning_content", "reasoning", "thinking")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
TURN_FIELDS = {"reasoning_content", "tool_calls"}
"""Fields of an assistant's message that a chat template renders, beside its content."""


def kind(value: Any) -> str:
    """The kind of a value, in words for an error."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def messages_of(items: Sequence[Any], name: str) -> list[Message]:
    """The messages; calls in turns of their own join the assistant's turn before them.

    Raises:
        ValueError: one is malformed, or holds something that is not text.
    """
    messages: list[Message] = []
    for index, item in enumerate(items):
        message, is_call = _message(item, f"{name}[{index}]")
        if is_call and messages and messages[-1]["role"] == "assistant":
            before = messages[-1]
            messages[-1] = {**before, "tool_calls": [*before.get("tool_calls", ()), *message["tool_calls"]]}
        else:
            messages.append(message)
    return messages


def _message(item: Any, name: str) -> tuple[Message, bool]:
    """The message, and whether it is a turn that only calls tools."""
    if not isinstance(item, dict):
        raise ValueError(f"{name} is {kind(item)}, expected a message with 'role' and 'content'")
    keys = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    others = {key: value for key, value in item.items() if key not in keys and value is not None}
    needed = keys[:1] if others.keys() & {"tool_calls", "function_call"} else keys
    if missing := [key for key in needed if key not in item]:
        raise ValueError(f"{name} is a message without {missing[0]!r}, found {sorted(item)}")
    role, content = item[keys[0]], item.get(keys[1])
    if not isinstance(role, str):
        raise ValueError(f"{name}.{keys[0]} is {kind(role)}, expected text")
    refuse_media(item, f"{name}.")
    if role.lower() in _CALL_ROLES and "tool_calls" not in others:
        calls = tool_calls_of(content, f"{name}.{keys[1]}")
        return {"role": "assistant", "content": "", **others, "tool_calls": calls}, True
    if role.lower() in ("tool", *_RESULT_ROLES) and isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    turn = _turn(others, name)
    if not isinstance(content, str | list) and not (content is None and TURN_FIELDS & set(turn)):
        raise ValueError(f"{name}.{keys[1]} is {kind(content)}, expected text")
    try:
        text = content_text(content) or ""
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return {"role": _ROLES.get(role.lower(), role.lower()), "content": text, **turn}, False


def _turn(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The other fields of a message, with reasoning and calls under one name each."""
    turn = {key: value for key, value in fields.items() if key not in (*_REASONING, "tool_calls", "function_call")}
    reasoning = next((fields[key] for key in _REASONING if fields.get(key)), None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise ValueError(f"{name}: the reasoning is {kind(reasoning)}, expected text")
        turn["reasoning_content"] = reasoning
    if calls := fields.get("tool_calls") or fields.get("function_call"):
        turn["tool_calls"] = tool_calls_of(calls, f"{name}.tool_calls")
    return turn


def tool_calls_of(value: Any, name: str) -> list[dict[str, Any]]:
    """The calls in a list, an object or the JSON of one.

    Raises:
        ValueError: it holds something else.
    """
    listed = _parsed(value, name)
    listed = [listed] if isinstance(listed, dict) else listed
    if not (isinstance(listed, list) and listed):
        raise ValueError(f"{name} is {kind(listed)}, expected tool calls")
    calls = []
    for call in listed:
        called = call.get("function", call) if isinstance(call, dict) else None
        if not (isinstance(called, dict) and isinstance(called.get("name"), str)):
            raise ValueError(f"{name} holds a call without a name")
        arguments = called.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", f"{name}: the arguments of {called['name']}")
        kept = {key: own for key, own in call.items() if key in ("id", "type") and own is not None}
        function = {"name": called["name"], "arguments": arguments}
        calls.append({**kept, "type": kept.get("type", "function"), "function": function})
    return calls


def tools_of(value: Any) -> list[dict[str, Any]]:
    """The tools in a column: a list or its JSON, each tool bare or as a `function`; empty where there are none.

    Raises:
        ValueError: it holds something else.
    """
    listed = _parsed(value, "tools") if value else []
    if isinstance(listed, dict):
        listed = [listed] if listed else []
    tools = []
    for tool in listed if isinstance(listed, list) else [None]:
        if not isinstance(tool, dict) or not {"name", "function"} & set(tool):
            raise ValueError(
                "tools must be a list of functions, each with a name; rename the column if it holds no tools"
            )
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tools


def refuse_media(fields: Mapping[str, Any], name: str = "") -> None:
    """Raises ValueError where fields hold images, videos or sounds."""
    for field in MEDIA:
        if fields.get(field):
            raise ValueError(f"{name}{field} is not empty, but only text can be read")


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is broken JSON: {error.msg} at column {error.colno}") from error
