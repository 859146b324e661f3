"""The page of faults: from reliability.toml, where each stands with its tests, and the counts of long runs."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

from docs.generate.text import INPUTS, NOTE, cell, table

if TYPE_CHECKING:
    from collections.abc import Mapping

RELIABILITY = """\
What can go wrong, what then happens, and the tests that hold it; a test fails where a row has none. `make test` runs
them, those that take long by `make test-slow`.
"""


def reliability_page() -> str:
    """Every fault with its tests, and what long runs of kills and of mutated inputs have found."""
    said = tomllib.loads((INPUTS / "reliability.toml").read_text(encoding="utf-8"))
    rows = [
        [str(fault["number"]), cell(fault["fault"]), cell(fault["must"]), "; ".join(map(_test_link, fault["tests"]))]
        for fault in said["fault"]
    ]
    parts = [NOTE, "# Reliability\n", RELIABILITY, *table(["#", "fault or input", "what happens", "tests"], rows)]
    for name, counted in (("soak", _kills), ("fuzz", _inputs)):
        measured, file = said[name], INPUTS / f"{name}.json"
        counts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        parts += [f"## {measured['title']}\n", measured["text"]]
        parts += [f"On {measured['date']}, {measured['machine']}:\n", *counted(counts)] if counts else []
        parts += [f"{measured['found']}\n"] if measured["found"] else []
    return "\n".join(parts)


def _kills(counts: Mapping[str, int]) -> list[str]:
    """What `make soak ARGS="--resume FILE"` has written: every kill led to the same models."""
    moments = {"any": "at any moment", "save": "inside a save", "model": "while the model is written"}
    by_run = {name: [counts.get(f"{name}: {moment}", 0) for moment in moments] for name in _runs(counts)}
    total = list(map(sum, zip(*by_run.values(), strict=True)))
    rows = [[name, *map(str, found), str(sum(found))] for name, found in {**by_run, "together": total}.items()]
    return table(["run", *moments.values(), "kills, all resumed bitwise"], rows)


def _runs(counts: Mapping[str, int]) -> list[str]:
    return list(dict.fromkeys(key.rpartition(":")[0] for key in counts))


def _inputs(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What `make fuzz-long ARGS="--resume FILE"` has written."""
    total = {outcome: sum(count.get(outcome, 0) for count in counts.values()) for outcome in ("read", "refused")}
    rows = [
        [name, f"{found.get('read', 0):,}", f"{found.get('refused', 0):,}", f"{sum(found.values()):,}"]
        for name, found in {**counts, "together": total}.items()
    ]
    return table(["target", "read", "refused", "inputs"], rows)


def _test_link(test: str) -> str:
    path, name = test.split("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../../{path})"
