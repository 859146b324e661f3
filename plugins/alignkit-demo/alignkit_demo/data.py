"""The demo's data, written as the ordinary JSONL files that any recipe reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from alignkit.commands import split_by_prompt
from alignkit_demo.world import make_note, make_prompts, make_reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Set
    from pathlib import Path

    from alignkit import Prompt

NOTES_SHARE = 0.35
"""Share of product notes in the raw text; the rest is conversations."""
HOLDOUT = 0.1
"""`run.holdout` of the demo's recipes."""


@dataclass(frozen=True)
class Sizes:
    """Rows of each file."""

    raw: int = 14_400
    demonstrations: int = 1500
    prompts: int = 1600
    evaluation: int = 256


def raw_text(random: Random, without: Set[str]) -> str:
    """Product notes, or a conversation with a reply of any quality; without the outer markers.

    Args:
        without: keys of prompts that it does not hold.
    """
    if random.random() < NOTES_SHARE:
        note = make_note(random)
        return f"{' '.join(note[:2])}<agent>{' '.join(note[2:])}"
    (prompt,) = make_prompts(1, random, without)
    return f"{_message(prompt)}<agent>{make_reply(prompt, random.random(), random)}"


def write_data(folder: Path, sizes: Sizes, *, seed: int) -> None:
    """Writes raw.jsonl, demonstrations.jsonl, prompts.jsonl and evaluation.jsonl.

    Demonstrations are of medium quality, so that there is room for improvement. The prompts of the evaluation stand in
    no other file, and those that the recipes hold out not in the raw text either.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(f"demo/{seed}")
    evaluation = make_prompts(sizes.evaluation, Random(f"demo/evaluation/{seed}"))
    unseen = {prompt.key for prompt in evaluation}
    prompts = make_prompts(sizes.prompts, random, unseen)
    unread = unseen | {prompt.key for prompt in split_by_prompt(prompts, HOLDOUT)[1]}
    raw = [{"prompt": "<user>", "completion": raw_text(random, unread)} for _ in range(sizes.raw)]
    _write(folder / "raw.jsonl", raw)
    demonstrations = []
    for prompt in make_prompts(sizes.demonstrations, random, unseen):
        quality = min(1.0, max(0.0, random.gauss(0.5, 0.25)))
        reply = {"role": "assistant", "content": make_reply(prompt, quality, random)}
        demonstrations.append({**prompt.meta, "messages": [*prompt.content, reply]})
    _write(folder / "demonstrations.jsonl", demonstrations)
    _write(folder / "prompts.jsonl", map(_row, prompts))
    _write(folder / "evaluation.jsonl", map(_row, evaluation))


def _message(prompt: Prompt) -> str:
    return str(prompt.content[-1]["content"])  # type: ignore[index]


def _row(prompt: Prompt) -> Mapping[str, object]:
    return {"prompt": prompt.content, **prompt.meta}


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
