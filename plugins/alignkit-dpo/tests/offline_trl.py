"""The same rows and weights for an algorithm and for TRL's trainer for it: five steps, losses and gradients."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from alignkit_trl.testing.parity import parity_steps, trl_steps

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from alignkit import GroupBatch, Optimizer

GROUPS_PER_STEP = 4

Rows = list[dict[str, Any]]


def optimizer_of(member: type[Any], llama: Path, options: Mapping[str, Any]) -> Any:
    """The algorithm on the tiny Llama."""
    from alignkit_hf.options import HFOptions
    from alignkit_hf.policy import HFPolicy

    return member(member.Config(**options), policy=HFPolicy(HFOptions(model=str(llama))))


def random_text(draw: random.Random, longest: int) -> str:
    return "".join(draw.choice("abcdefgh .") for _ in range(draw.randint(1, longest)))


def rankings(k: int, *, longest_prompt: int = 20, longest_response: int = 15) -> list[Group]:
    """Groups of different responses for five steps, without ties."""
    draw = random.Random(k)
    groups = []
    for _ in range(5 * GROUPS_PER_STEP):
        prompt, responses = Prompt(text=random_text(draw, longest_prompt)), set[str]()
        while len(responses) < k:
            responses.add(random_text(draw, longest_response))
        groups.append(Group(prompt, tuple(sorted(responses)), ranks=tuple(draw.sample(range(k), k))))
    return groups


def text_rows(batch: GroupBatch) -> Rows:
    """`prompt`, `chosen` and `rejected` of every pair, as text."""
    return [
        {"prompt": group.prompt.text, "chosen": group.responses[better], "rejected": group.responses[worse]}
        for group in batch.groups
        for better, worse in group.preferred_pairs()
    ]


def assert_equal_to_trl(
    optimizer: Optimizer[Any],
    trainer: type[Any],
    arguments: type[Any],
    groups: list[Group],
    rows_of: Callable[[GroupBatch], Rows],
    *,
    llama: Path,
    folder: Path,
    **trl: Any,
) -> None:
    """Fails unless losses and gradients agree in all five steps, which must change something."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    batch = optimizer.policy.encode(groups)
    rows = rows_of(batch)
    theirs = trl_steps(
        trainer,
        arguments,
        AutoModelForCausalLM.from_pretrained(llama, attention_dropout=0.0),
        rows,
        tokenizer=AutoTokenizer.from_pretrained(llama),
        folder=folder,
        rows_per_step=len(rows) // 5,
        **trl,
    )
    assert len(theirs.losses) == 5
    assert max(abs(loss - theirs.losses[0]) for loss in theirs.losses) > 1e-3
    assert max(float(g.abs().max()) for g in theirs.gradients[0].values()) > 1e-3
    parity_steps(optimizer, batch, groups_per_step=GROUPS_PER_STEP).assert_equal_to(theirs)
