"""The reward that rollouts are scored with, in the form that both programs call."""

from __future__ import annotations

from typing import Any


def closeness(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
    """How close a response is to 160 characters, and something that no length explains."""
    return [-abs(len(text) - 160) / 160 + sum(map(ord, text)) % 7 / 7 for text in completions]
