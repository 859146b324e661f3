"""Renders chats with a tokenizer's chat template, or as plain lines without one.

The text of a response is the content of an assistant's message. What is trained is what the template makes of that
message: what the generation prompt opens (`<think>`) stands there once, with the tool calls, the reasoning and the end
of the turn as the template writes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit import message_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group, Message, Prompt

_ASKED, _SAID = "0", "qwzx"
_THINKS = re.compile(r"(<[^<>\s]*think[^<>\s]*>|\[THINK\])\s*$", re.IGNORECASE)
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
        if tools and text == self._render(messages, prompt, asking=True, tools=False):
            raise ValueError("the chat template renders no tools, and this row has some")
        if has_calls:
            bare = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
            if text == self._render(bare, prompt, asking=True):
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
        before, _, end = turn.rpartition(_SAID)
        opened = _THINKS.search(asking)
        start = opened.start() if opened else len(asking)
        if not before.startswith(asking[:start]):
            start = next(place for place in range(start, -1, -1) if before.startswith(asking[:place]))
        return Frame(asking[:start], asking[start:], before[start:], end)

    def _rest(self, prompt: Prompt, asking: str, frame: Frame, turn: Message) -> tuple[int, str]:
        """(where the turn starts in the prompt's text, the turn's text from there)."""
        if not self.use_template:
            if turn.get("tool_calls"):
                raise ValueError(_NO_TEMPLATE)
            return len(asking), frame.lead + message_text(turn)
        messages = [*(prompt.messages or ()), turn]
        text = self._render(messages, prompt)
        for field, name in (("tool_calls", "tool calls"), ("reasoning_content", "reasoning")):
            bare = {key: value for key, value in turn.items() if key != field}
            if turn.get(field) and text == self._render([*messages[:-1], bare], prompt):
                raise ValueError(f"the chat template does not render the {name} of the answer")
        for start in (len(asking), len(asking) - len(frame.opening)):
            if text.startswith(asking[:start]) and asking.endswith(frame.opening):
                return start, text[start:]
        return self._apart(prompt, asking, text)

    def _apart(self, prompt: Prompt, asking: str, text: str) -> tuple[int, str]:
        """The same where an answer changes how the template renders earlier turns: the model sees those of `asking`."""
        header = asking[len(self._render(prompt.messages or (), prompt)) :]
        place = text.rfind(header)
        if not header or place < 0:
            raise ValueError("the chat template renders the prompt in another way once there is an answer")
        return len(asking), text[place + len(header) :]

    def _render(
        self, messages: Sequence[Message], prompt: Prompt | None, *, asking: bool = False, tools: bool = True
    ) -> str:
        meta = prompt.meta if prompt else {}
        try:
            text: str = self._tokenizer.apply_chat_template(
                [_for_template(message) for message in messages],
                tools=(_tools(prompt) or None) if prompt and tools else None,
                tokenize=False,
                add_generation_prompt=asking,
                **(meta.get("chat_template_kwargs") or {}),
            )
        except Exception as error:  # a template may fail with any error
            raise ValueError(f"the chat template refuses the row: {error}") from error
        return text


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


def _for_template(message: Mapping[str, Any]) -> Message:
    """The message with its reasoning under each of the names that templates read."""
    reasoning = message.get("reasoning_content")
    return {"reasoning": reasoning, "thinking": reasoning, **message} if reasoning else dict(message)
