"""What stands beside a row's prompt and reaches the model with it: a system text, tools, variables of the template."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from alignkit import Prompt
from alignkit_data.messages import text_of
from alignkit_data.turns import kind, refuse_media, tools_of

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM = ("system", "system_prompt")
TOOLS, VARIABLES = "tools", "chat_template_kwargs"


def in_context(prompt: Prompt, columns: Mapping[str, Any], *, holds_all: bool) -> tuple[Prompt, set[str]]:
    """The prompt with what these columns say, and the columns that say it. The other columns join its meta.

    Args:
        columns: those that the form did not use.
        holds_all: the prompt is the beginning of texts that hold the whole conversation.

    Raises:
        ValueError: a column is malformed, contradicts the prompt, or holds what no prompt can hold (images).
    """
    refuse_media(columns)
    used = {name for name in (*SYSTEM, TOOLS, VARIABLES) if name in columns}
    system = system_of(columns)
    passed: dict[str, Any] = {}
    if tools := tools_of(columns.get(TOOLS)):
        passed[TOOLS] = tools
    if columns.get(VARIABLES):
        if not isinstance(columns[VARIABLES], dict):
            raise ValueError(f"{VARIABLES} is {kind(columns[VARIABLES])}, expected an object")
        passed[VARIABLES] = columns[VARIABLES]
    if (system or passed) and holds_all:
        raise ValueError(f"{', '.join(sorted(used))} needs a prompt of its own; rename the column, or add prompt")
    content = _chat(prompt, system) if system or passed else prompt.content
    others = {name: value for name, value in columns.items() if name not in used}
    return Prompt.of(content, {**prompt.meta, **others, **passed}), used


def system_of(columns: Mapping[str, Any]) -> str:
    """The system text among these columns, "" if there is none. Raises ValueError for anything but text."""
    said = [text_of(columns[name], name) for name in SYSTEM if columns.get(name) is not None]
    return next((text for text in said if text.strip()), "")


def is_name(text: str) -> bool:
    """Whether a system column names what made the answers (`6b_finetuning`), as it does in some comparisons."""
    return bool(re.fullmatch(r"[\w./:@+-]*\w", text.strip(), re.ASCII))


def _chat(prompt: Prompt, system: str) -> list[dict[str, Any]]:
    messages = list(prompt.messages or ())
    if prompt.text:
        messages = [{"role": "user", "content": prompt.text}]
    if messages and messages[0]["role"] == "system":
        if system not in ("", messages[0]["content"]):
            raise ValueError("the column system and the system turn differ; drop one of them")
        return messages
    return [{"role": "system", "content": system}, *messages] if system else messages
