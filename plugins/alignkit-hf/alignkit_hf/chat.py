"""Renders chats with a tokenizer's chat template, or as plain lines without one.

The text of a response is the content of an assistant's message. What is trained is what the template makes of that
message: what the generation prompt opens (`<think>`) stands there once, with the tool calls, the reasoning and the end
of the turn as the template writes them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit import message_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group, Message, Prompt

_ASKED, _SAID = "0", "qwzx"
_THINKS = re.compile(r"(<(?!/)[^<>\s]*think[^<>\s]*>|\[THINK\])\s*$", re.IGNORECASE)
_NO_TEMPLATE = "there are tools, but no chat template that could render them"


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer.

    Attributes:
        start: a short conversation up to the answer.
        opening: what the generation prompt adds to that for the model to go on from, as `<think>`.
        lead: what a whole turn has there in its place, as a space.
        end: what follows the answer.
    """

    start: str = ""
    opening: str = ""
    lead: str = ""
    end: str = ""


PLAIN = Frame(lead=" ")


class Chat:
    """The texts of chats.

    Args:
        tokenizer: a transformers tokenizer.
        use_template: use its chat template; otherwise messages become `User: ...` lines.
    """

    def __init__(self, tokenizer: Any, *, use_template: bool) -> None:
        self._tokenizer = tokenizer
        self.use_template = use_template and bool(getattr(tokenizer, "chat_template", None))
        self._frames: dict[str, Frame] = {}
        self._in_parts = False
        if self.use_template:
            self._in_parts = self._reads_parts()

    def prompt(self, prompt: Prompt) -> str:
        """The prompt with what makes the model answer.

        Raises:
            ValueError: the template refuses the messages, or leaves out a part of them.
        """
        if prompt.messages is None:
            return prompt.text or ""
        tools, messages = _tools(prompt), prompt.messages
        has_calls = any(message.get("tool_calls") for message in messages)
        if not self.use_template:
            if tools or has_calls:
                raise ValueError(_NO_TEMPLATE)
            lines = [f"{message['role'].capitalize()}: {message_text(message)}" for message in messages]
            return "\n".join([*lines, "Assistant:"])
        text = self._render(messages, prompt, asking=True)
        if tools and self._same(text, messages, prompt, asking=True, tools=False):
            raise ValueError("the chat template renders no tools, and this row has some")
        if has_calls:
            bare = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
            if self._same(text, bare, prompt, asking=True):
                raise ValueError("the chat template renders no tool calls, and a turn of the prompt has some")
        return text

    def answers(self, group: Group) -> tuple[str, list[str]]:
        """The group's prompt, and what follows it for each response: in templates with the end of the turn.

        The prompt is that of `prompt`, without its opening if a response has another one.

        Raises:
            ValueError: the template refuses a message, or leaves out a part of it.
        """
        prompt = self.prompt(group.prompt)
        if group.prompt.messages is None:
            return prompt, list(group.responses)
        frame = self.frame(group.prompt)
        turns = _turns(group)
        whole = group.finished or (True,) * len(turns)
        rests = [
            self._rest(group.prompt, prompt, frame, turn) if ended else _begun(prompt, frame, turn)
            for turn, ended in zip(turns, whole, strict=True)
        ]
        shortest = min(start for start, _ in rests)
        return prompt[:shortest], [prompt[shortest:start] + text for start, text in rests]

    def conversations(self, group: Group) -> list[str]:
        """The prompt with each response, as the template renders them.

        Raises:
            ValueError: the template refuses a message, or leaves out a part of the prompt.
        """
        self.prompt(group.prompt)
        return [self._render([*(group.prompt.messages or ()), turn], group.prompt) for turn in _turns(group)]

    def check(self, group: Group) -> None:
        """Raises ValueError if the group can't be rendered; without answers, its prompt."""
        if any(group.responses):
            self.answers(group)
        else:
            self.prompt(group.prompt)

    def content(self, prompt: Prompt, text: str) -> str:
        """The content of the message whose rendering goes on after the prompt with this text."""
        if prompt.messages is None:
            return text
        frame = self.frame(prompt)
        return frame.opening + text if frame.opening else text.removeprefix(frame.lead)

    def frame(self, prompt: Prompt | None = None) -> Frame:
        """What the template writes around answers; empty if it refuses the shortest conversation."""
        if not self.use_template:
            return PLAIN
        key = repr(prompt.meta.get("chat_template_kwargs")) if prompt else ""
        if key not in self._frames:
            self._frames[key] = self._measured(prompt)
        return self._frames[key]

    def _measured(self, prompt: Prompt | None) -> Frame:
        asked: Message = {"role": "user", "content": _ASKED}
        try:
            asking = self._render([asked], prompt, asking=True, tools=False)
            turn = self._render([asked, {"role": "assistant", "content": _SAID}], prompt, tools=False)
        except ValueError:
            return Frame()
        before, found, end = turn.rpartition(_SAID)
        if not found:
            return Frame()
        opened = _THINKS.search(asking)
        start = opened.start() if opened else len(asking)
        if not before.startswith(asking[:start]):
            start = next(place for place in range(start, -1, -1) if before.startswith(asking[:place]))
        return Frame(asking[:start], asking[start:], before[start:], end)

    def _reads_parts(self) -> bool:
        """Whether the template reads lists of parts alone, as those of models that see do, and skips texts."""
        shown = []
        for self._in_parts in (False, True):
            try:
                shown.append(_SAID in self._render([{"role": "user", "content": _SAID}], None))
            except ValueError:
                shown.append(False)
        return shown == [False, True]

    def _rest(self, prompt: Prompt, asking: str, frame: Frame, turn: Message) -> tuple[int, str]:
        """(where the turn starts in the prompt's text, the turn's text from there)."""
        if not self.use_template:
            if turn.get("tool_calls"):
                raise ValueError(_NO_TEMPLATE)
            return len(asking), frame.lead + message_text(turn)
        messages = [*(prompt.messages or ()), turn]
        text = self._render(messages, prompt)
        said = message_text(turn)
        thoughts, closed, _ = said.removeprefix(frame.opening).rpartition("</think>")
        if frame.opening and closed and not turn.get("tool_calls") and thoughts.strip() not in text:
            # a template that renders no thoughts of earlier turns, while the model goes on from `<think>`
            return len(asking), said.removeprefix(frame.opening) + frame.end
        for field, name in (("tool_calls", "tool calls"), ("reasoning_content", "reasoning")):
            bare = {key: value for key, value in turn.items() if key != field}
            if turn.get(field) and self._same(text, [*messages[:-1], bare], prompt):
                raise ValueError(f"the chat template does not render the {name} of the answer")
        for start in (len(asking), len(asking) - len(frame.opening)):
            if text.startswith(asking[:start]) and asking.endswith(frame.opening):
                return start, text[start:]
        return self._apart(prompt, asking, text)

    def _apart(self, prompt: Prompt, asking: str, text: str) -> tuple[int, str]:
        """The same where the generation prompt opens something else than this turn, or where an answer changes how the
        template renders earlier turns: the model sees those of `asking`."""
        before = self._render(prompt.messages or (), prompt)
        header = asking[len(before) :]
        shared = next(place for place in range(len(asking), -1, -1) if text.startswith(asking[:place]))
        if (start := asking.rfind("\n", 0, shared) + 1) >= len(before):
            return start, text[start:]
        place = text.rfind(header)
        if not header or place < 0:
            raise ValueError("the chat template renders the prompt in another way once there is an answer")
        return len(asking), text[place + len(header) :]

    def _render(
        self, messages: Sequence[Message], prompt: Prompt | None, *, asking: bool = False, tools: bool = True
    ) -> str:
        given = {
            "tools": (_tools(prompt) or None) if prompt and tools else None,
            **((prompt.meta.get("chat_template_kwargs") if prompt else None) or {}),
        }
        shown = [self._for_template(message) for message in messages]
        try:
            return self._applied(shown, given, asking)
        except Exception as error:  # a template may fail with any error
            try:  # DeepSeek's adds the arguments of calls to a text
                written = [_with_written_arguments(message) for message in shown]
                return self._applied(written if written != shown else [], given, asking)
            except Exception:  # the first error says more
                raise ValueError(f"the chat template refuses the row: {error}") from error

    def _same(self, text: str, messages: Sequence[Message], prompt: Prompt, **how: bool) -> bool:
        """Whether the template renders these messages as this text too."""
        try:
            return text == self._render(messages, prompt, **how)
        except ValueError:
            return False

    def _applied(self, messages: Sequence[Message], given: Mapping[str, Any], asking: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asking, **given
        )
        return text

    def _for_template(self, message: Mapping[str, Any]) -> Message:
        """The message with its reasoning under each of the names that templates read."""
        reasoning = message.get("reasoning_content")
        named = {"reasoning": reasoning, "thinking": reasoning, **message} if reasoning else dict(message)
        if self._in_parts:
            named["content"] = [{"type": "text", "text": message["content"] or ""}]
        return named


def _with_written_arguments(message: Message) -> Message:
    """The message with the arguments of its calls as JSON."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"].get("arguments"))}}
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "tool_calls": calls} if calls else message


def _tools(prompt: Prompt) -> list[dict[str, Any]]:
    """The tools that the prompt offers; a reward's column of the same name may hold anything else."""
    tools = prompt.meta.get("tools")
    listed = isinstance(tools, list | tuple) and all(isinstance(tool, dict) for tool in tools)
    return list(tools) if tools and listed else []


def _turns(group: Group) -> list[Message]:
    """The assistant's message of each response."""
    known = group.meta.get("turns") or [None] * len(group.responses)
    return [turn or {"role": "assistant", "content": text} for turn, text in zip(known, group.responses, strict=True)]


def _begun(asking: str, frame: Frame, turn: Message) -> tuple[int, str]:
    """Like `Chat._rest` for a turn that was cut off, which no template can render."""
    text = message_text(turn)
    if text.startswith(frame.opening):
        lead = frame.lead if frame.lead.isspace() else ""
        return len(asking), lead * (not frame.opening) + text.removeprefix(frame.opening)
    return len(asking) - len(frame.opening), text
