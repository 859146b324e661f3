"""Feeds of the training loop: a data set as one batch, or a batch of scored rollouts per iteration."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, Protocol

import torch

from alignkit.errors import InputError
from alignkit.ops.distributed import barrier, mean_over_processes, num_processes, process_index
from alignkit.samplers import OwnSampler
from alignkit.training.scores import check_abstentions, score_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Model, Policy, RewardSource
    from alignkit.options import IterationOptions, LearningOptions, Sampling
    from alignkit.records import Group, Prompt
    from alignkit.samplers import Sampler


class BatchFeed(Protocol):
    """Batches by number; the same number and seed give the same batch.

    Attributes:
        num_batches: number of batches.
        groups_per_batch: groups of a full batch in this process.
        repeatable: whether a batch can be made again after the policy has changed (rollouts can't).
        figures: of the last batch, the same in every process.
    """

    num_batches: int
    groups_per_batch: int
    repeatable: bool
    figures: dict[str, float]

    def batch(self, index: int) -> GroupBatch:
        """This process's batch `index`, encoded, and scored if the algorithm needs it."""

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        """A prepared batch, corrected for how it was sampled, and figures of it."""
        return batch, {}


class OfflineFeed(BatchFeed):
    """A data set as one batch; `n_epochs` counts the passes over it. Each process holds its share."""

    repeatable = True
    num_batches = 1

    def __init__(self, groups: Sequence[Group], model: Model) -> None:
        self._groups = list(groups[process_index() :: num_processes()])
        self._model = model
        self.figures: dict[str, float] = {}
        if not self._groups:
            raise InputError(
                f"{len(groups)} records for {num_processes()} processes", fix="use fewer processes or more records"
            )
        self.groups_per_batch = len(self._groups)

    def batch(self, index: int) -> GroupBatch:
        batch = self._model.encode(self._groups)
        self.groups_per_batch = batch.num_groups
        return batch


class RolloutFeed(BatchFeed):
    """Has the policy sampled on the next prompts and scores the responses. Every pass over the prompts has an order of
    its own."""

    repeatable = False

    def __init__(
        self,
        prompts: Sequence[Prompt],
        policy: Policy[Any],
        reward: RewardSource[Any],
        *,
        sampling: Sampling,
        options: IterationOptions,
        seed: int,
        sampler: Sampler[Any] | None = None,
    ) -> None:
        if not prompts:
            raise InputError("no prompts to sample from", where="prompts", fix="name a source in [prompts]")
        sampling.check_rollouts()
        self._prompts, self._policy, self._reward = list(prompts), policy, reward
        self._sampling, self._options, self._seed = sampling, options, seed
        self._sampler = sampler or OwnSampler()
        self.figures: dict[str, float] = {}
        self.num_batches = options.iterations
        self.groups_per_batch = math.ceil(options.batch_size / num_processes())

    def batch(self, index: int) -> GroupBatch:
        size = self._options.batch_size
        places = range(size)[process_index() :: num_processes()]
        self._sampler.sync(self._policy, index)
        barrier()
        batch = self._sampler.generate(
            [self._prompt_at(index * size + place) for place in places],
            n=self._options.group_size,
            sampling=self._sampling,
            seed=self._seed * 1_000_003 + index,
            places=places,
        )
        scored = score_batch(batch.replace(response_limit=self._sampling.max_tokens), self._reward)
        self._count_abstentions(1 - scored.num_responses / batch.num_responses, batch.device)
        return scored

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        return self._sampler.corrected(batch)

    def _count_abstentions(self, own: float, device: torch.device) -> None:
        share = float(mean_over_processes(torch.tensor(own, device=device)))
        self.figures = {"abstained": share} if share else {}
        check_abstentions(share, self._options.max_abstained)

    def _prompt_at(self, position: int) -> Prompt:
        round_number, offset = divmod(position, len(self._prompts))
        return self._prompts[prompt_order(len(self._prompts), seed=self._seed, round_number=round_number)[offset]]


def prompt_order(count: int, *, seed: int, round_number: int) -> list[int]:
    """The order of the prompts in a pass over all of them, the same in all processes."""
    return _shuffled(count, f"prompts/{seed}/{round_number}")


def epoch_order(num_groups: int, *, seed: int, batch: int, epoch: int) -> list[int]:
    """The order of a batch's groups in an epoch, in this process."""
    return _shuffled(num_groups, f"order/{seed}/{batch}/{epoch}/{process_index()}")


def _shuffled(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def planned_steps(feed: BatchFeed, options: LearningOptions) -> int:
    """Optimisation steps of a whole run, if no batch ends early."""
    size = max(1, options.minibatch_size // num_processes())
    return max(1, feed.num_batches * options.n_epochs * math.ceil(feed.groups_per_batch / size))
