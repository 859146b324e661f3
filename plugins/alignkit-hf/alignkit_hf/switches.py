"""Makes what a config switches at some length switch at a few tokens, so that short rows stand on both sides of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from alignkit_hf.rotary import SWITCH, scalings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

WINDOW = 6
ROTARY = 12
_WINDOW_NAMES = ("sliding_window", "attention_chunk_size", "window_size")


@contextlib.contextmanager
def within_reach(lm: PreTrainedModel) -> Iterator[None]:
    """Inside, sliding windows end at `WINDOW` tokens and rotary scalings switch after `ROTARY`; shorter ones stay."""
    config = lm.config.get_text_config()
    owners = {id(x): x for x in (lm.config, config, *lm.modules())}.values()
    tables: list[tuple[dict[str, Any], str, int]] = [
        (vars(owner), name, WINDOW) for owner in owners for name in _WINDOW_NAMES
    ]
    tables += [(own, SWITCH, ROTARY) for own in scalings(lm)]
    changed = []
    for table, name, limit in tables:
        value = table.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > limit:
            changed.append((table, name, value))
            table[name] = limit
    try:
        yield
    finally:
        for table, name, value in changed:
            table[name] = value
