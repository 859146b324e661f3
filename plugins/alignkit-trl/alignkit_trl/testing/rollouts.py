"""Holding an online algorithm against TRL's trainer for it: the same responses and rewards, several steps on them.

TRL's own code makes advantages, reference and old log-probabilities, and the loss; only the sampling is replaced. For
tests; needs trl and datasets installed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from alignkit import Group, GroupBatch, Prompt
from alignkit_trl.testing.parity import adam_steps, trl_steps

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from alignkit import Optimizer

STOP, LIMIT = 0, 12
"""The stop token of `alignkit.testing.tiny_hf`, and the longest response of these rollouts."""


def rollouts(optimizer: Optimizer[Any], *, groups: int = 3, size: int = 4) -> GroupBatch:
    """Scored responses of 1 to 12 tokens, some cut off; the last group's rewards are all equal."""
    draw = random.Random(groups)
    records, responses, rewards = [], [], []
    for group in range(groups):
        lengths = [draw.randint(1, LIMIT - 1) for _ in range(size - 1)] + [LIMIT]
        rows = [[draw.randint(1, 200) for _ in range(length)] for length in lengths]
        responses.append([row if len(row) == LIMIT else [*row, STOP] for row in rows])
        rewards += [0.7 if group == groups - 1 else draw.gauss(0, 1) for _ in range(size)]
        records.append(Group(Prompt(text="say it" + "!" * (3 * group)), tuple("" for _ in range(size))))
    prompts = [ids.tolist() for ids in _rows_of_prompts(optimizer.policy.encode(records))]
    finished = [row[-1] == STOP for rows in responses for row in rows]
    batch = GroupBatch.from_ids(prompts, responses, records, finished=finished)
    return batch.replace(rewards=torch.tensor(rewards), response_limit=LIMIT)


def assert_steps_equal(
    optimizer: Optimizer[Any],
    trainer: type[Any],
    arguments: type[Any],
    model: nn.Module,
    *,
    tokenizer: Any,
    folder: Path,
    steps: int = 5,
    **options: Any,
) -> GroupBatch:
    """Fails unless losses and gradients of all steps over one batch of rollouts agree. Returns the prepared batch.

    Args:
        trainer, arguments: TRL's trainer and the class of its arguments, which takes `options`.
    """
    batch = rollouts(optimizer)
    with torch.no_grad():
        prepared = optimizer.prepare(batch)
    ours = adam_steps(optimizer, [prepared] * steps)
    per_step = batch.num_responses

    def without_max_length(**given: Any) -> Any:
        del given["max_length"]
        return arguments(**given)

    theirs = trl_steps(
        _on_fixed_responses(trainer, batch),
        without_max_length,  # type: ignore[arg-type]
        model,
        _rows(batch) * steps,
        tokenizer=tokenizer,
        folder=folder,
        rows_per_step=per_step,
        num_generations=per_step // batch.num_groups,
        num_iterations=steps,
        steps_per_generation=1,
        max_completion_length=LIMIT,
        **options,
    )
    ours.assert_equal_to(theirs)
    assert max(abs(loss - ours.losses[0]) for loss in ours.losses) > 1e-3, "the steps changed nothing"
    return prepared


def _rows(batch: GroupBatch) -> list[dict[str, Any]]:
    prompts = [group.prompt.plain for group in batch.groups]
    return [{"prompt": prompts[group], "row": row} for row, group in enumerate(batch.group_index.tolist())]


def _rows_of_prompts(batch: GroupBatch) -> tuple[torch.Tensor, ...]:
    return torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())


def _on_fixed_responses(trainer: type[Any], batch: GroupBatch) -> type[Any]:
    """The trainer with the batch's responses in place of sampled ones, and its rewards."""
    prompts = [ids.tolist() for ids in _rows_of_prompts(batch)]
    responses = [ids.tolist() for ids in torch.split(batch.response_ids, batch.lengths.tolist())]
    assert batch.rewards is not None
    rewards = batch.rewards.tolist()

    def reward(*, row: list[int], **_: Any) -> list[float]:
        return [rewards[number] for number in row]

    class FixedResponses(trainer):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(reward_funcs=reward, **given)

        def _tokenize_prompts(self, texts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [prompts[group] for group in batch.group_index.tolist()], None, {}

        def _generate_single_turn(self, *given: Any) -> Any:
            return responses if len(given) == 3 else (responses, None)

    return FixedResponses
