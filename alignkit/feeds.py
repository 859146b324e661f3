"""What the training loop is fed: a data set as one batch, or a batch of scored rollouts for each iteration."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from alignkit.errors import InputError, PluginError
from alignkit.ops.distributed import num_processes, process_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Model, Policy, RewardSource
    from alignkit.options import RolloutOptions, Sampling
    from alignkit.records import Group, Prompt


class BatchFeed(Protocol):
    """Batches by number, the same for the same number and seed.

    Attributes:
        num_batches: how many there are.
        groups_per_batch: groups of a full batch in this process.
        repeatable: whether a batch can be made again after the policy has moved on (rollouts can't).
    """

    num_batches: int
    groups_per_batch: int
    repeatable: bool

    def batch(self, index: int) -> GroupBatch:
        """The batch `index` of this process, encoded, and scored where the algorithm needs it."""


class OfflineFeed:
    """A data set as one batch; the passes over it are the Optimizer's `n_epochs`. Each process holds its share."""

    repeatable = True
    num_batches = 1

    def __init__(self, groups: Sequence[Group], model: Model) -> None:
        self._groups = list(groups[process_index() :: num_processes()])
        self._model = model
        if not self._groups:
            raise InputError(
                f"{len(groups)} records for {num_processes()} processes", fix="give each process at least one"
            )
        self.groups_per_batch = len(self._groups)

    def batch(self, index: int) -> GroupBatch:
        batch = self._model.encode(self._groups)
        self.groups_per_batch = batch.num_groups
        return batch


class RolloutFeed:
    """Samples the policy on the next prompts and scores what it said. Prompts come in a new order each round."""

    repeatable = False

    def __init__(
        self,
        prompts: Sequence[Prompt],
        policy: Policy[Any],
        reward: RewardSource[Any],
        *,
        sampling: Sampling,
        options: RolloutOptions,
        seed: int,
    ) -> None:
        if not prompts:
            raise InputError("no prompts to sample from", where="prompts", fix="name a source in the [prompts] table")
        if sampling.distortions:
            raise InputError(
                "rollouts must be sampled from the policy's whole distribution: the ratio of a truncated one is wrong",
                where="sampling",
                fix=f"leave out {', '.join(sampling.distortions)}",
            )
        self._prompts, self._policy, self._reward = list(prompts), policy, reward
        self._sampling, self._options, self._seed = sampling, options, seed
        self.num_batches = options.iterations
        self.groups_per_batch = math.ceil(options.batch_size / num_processes())

    def batch(self, index: int) -> GroupBatch:
        size = self._options.batch_size
        positions = range(index * size, (index + 1) * size)[process_index() :: num_processes()]
        prompts = [self._prompt_at(position) for position in positions]
        batch = self._policy.generate(
            prompts, n=self._options.group_size, sampling=self._sampling, seed=self._seed * 1_000_003 + index
        )
        return score_batch(batch.replace(response_limit=self._sampling.max_tokens), self._reward)

    def _prompt_at(self, position: int) -> Prompt:
        round_number, offset = divmod(position, len(self._prompts))
        return self._prompts[prompt_order(len(self._prompts), seed=self._seed, round_number=round_number)[offset]]


def prompt_order(count: int, *, seed: int, round_number: int) -> list[int]:
    """The order in which a round over all prompts takes them, over all processes."""
    order = list(range(count))
    random.Random(f"prompts/{seed}/{round_number}").shuffle(order)
    return order


def checked_scores(reward: RewardSource[Any], groups: Sequence[Group]) -> list[list[float | None]]:
    """What the source says, one finite float or None a response.

    Raises:
        PluginError: naming the source and the group where it says anything else.
    """
    name = type(reward).__name__
    scores = reward.score(groups)
    if len(scores) != len(groups):
        raise PluginError(f"reward {name}: {len(scores)} lists of scores for {len(groups)} groups")
    for number, (row, group) in enumerate(zip(scores, groups, strict=True)):
        if len(row) != len(group.responses):
            raise PluginError(f"reward {name}, group {number}: {len(row)} scores for {len(group.responses)} responses")
        for value in row:
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise PluginError(f"reward {name}, group {number}: {value!r} is not a finite number or None")
    return scores


def score_groups(reward: RewardSource[Any], groups: Sequence[Group]) -> list[Group]:
    """The groups with `scores` from the source."""
    return [
        replace(group, scores=tuple(row), source=type(reward).__name__)
        for group, row in zip(groups, checked_scores(reward, groups), strict=True)
    ]


def score_batch(batch: GroupBatch, reward: RewardSource[Any]) -> GroupBatch:
    """The batch with `rewards` [S]; responses on which the source abstained are left out.

    Raises:
        PluginError: the source abstained on every response.
    """
    rows = checked_scores(reward, batch.groups)
    flat = [value for row in rows for value in row]
    kept = torch.tensor([value is not None for value in flat], device=batch.device)
    if not bool(kept.any()):
        raise PluginError(f"reward {type(reward).__name__} abstained on all {len(flat)} responses")
    rewards = torch.tensor([value or 0.0 for value in flat], dtype=torch.float32, device=batch.device)
    scored = batch.replace(rewards=rewards)
    return scored if bool(kept.all()) else scored.select_responses(kept)
