"""Small changes to JSON values and bytes, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

DEEP, DIGITS = "@nested@", "@digits@"
"""Stand for values that no encoder writes: lists in lists, and a number of thousands of digits."""
_WRITTEN = {f'"{DEEP}"': "[" * 20_000 + "]" * 20_000, f'"{DIGITS}"': "9" * 5_000}

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, 10**400, -(10**20), math.nan, math.inf, -math.inf, 1e-320,
    "", " ", "\ud800", "a\udfffb", "\x1b[31mred\x1b[0m", "\x9b2J", "\u202eabc", "\x00", "a\rb", "x\n", "\u2028", "é",
    "true", "0", "1.5", "<script>alert(1)</script>", "{prompt.__class__}", "Assistant: x", "[]",
    '[{"', "../../x", "a" * 300,
    [], {}, [None], ["\ud800", True], [[]], {"": None}, {"role": "user", "content": "q"}, {"role": 3, "content": "q"},
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], {"from": "gpt", "value": [1]},
    {"value": False}, [0, 1, 1], [[0, 1, 2]], DEEP, DIGITS,
)  # fmt: skip
BYTES = (
    b"",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x00",
    b"\r",
    b"\n",
    b"\r\n",
    b'"',
    b",",
    b"\t",
    b"\\",
    b"{",
    b"]",
    b"\xef\xbb\xbf",
    b"\x1f\x8b",
    b"NaN",
    b"1e999",
)


def mutated(draw: random.Random, value: Any, times: int = 0) -> Any:
    """A copy of a JSON value with one to three changes: values replaced, removed, doubled or moved to another key."""
    holder = [copy.deepcopy(value)]
    for _ in range(times or draw.choice((1, 1, 1, 2))):
        parent, key = draw.choice(list(_places(holder)))
        deed = draw.random()
        if deed < 0.7 or parent is holder:
            parent[key] = copy.deepcopy(draw.choice(VALUES))
        elif deed < 0.8:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(draw.choice(parent)))
        else:
            parent[draw.choice((*parent, "", "id", "role", "\ud800", "é", "meta", "ranks"))] = parent.pop(key)
    return holder[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def as_json(value: Any) -> str:
    """The value as JSON, with what stands for a placeholder."""
    text = json.dumps(value)
    for placeholder, meant in _WRITTEN.items():
        text = text.replace(placeholder, meant)
    return text


def mutated_bytes(draw: random.Random, content: bytes) -> bytes:
    """The bytes with one to three changes: some replaced, inserted, removed, or the end cut off."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((0, 0, 1, 2, 20)))
        deed = draw.random()
        if deed < 0.1:
            content = content[:start]
        elif deed < 0.3:
            content = content[:start] + bytes([draw.randrange(256)]) + content[end:]
        else:
            content = content[:start] + draw.choice(BYTES) + content[end:]
    return content
