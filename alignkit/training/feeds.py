"""Feeds of the training loop: a data set as one batch, or a batch of scored rollouts per iteration."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from alignkit.errors import InputError
from alignkit.ops.distributed import barrier, num_processes, own_block, sum_over_processes
from alignkit.samplers import OwnSampler, Sampler
from alignkit.training.processes import evenly, gathered
from alignkit.training.scores import check_abstentions, score_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Model, Policy, RewardSource
    from alignkit.options import IterationOptions, LearningOptions, Sampling
    from alignkit.records import Group, Prompt


class BatchFeed(Protocol):
    """Batches by number; the same number and seed give the same batch.

    Attributes:
        num_batches: number of batches.
        groups_per_batch: groups of a full batch, over all processes.
        repeatable: whether a batch can be made again after the policy has changed (rollouts can't).
        figures: of the last batch, the same in every process.
        examples: some scored groups of the last batch, to be shown.
    """

    num_batches: int
    groups_per_batch: int
    repeatable: bool
    figures: dict[str, float]
    examples: Sequence[Group] = ()

    def batch(self, index: int) -> GroupBatch:
        """This process's block of batch `index`, encoded, and scored if the algorithm needs it."""

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        """A prepared batch, corrected for how it was sampled, and figures of it."""
        return batch, {}

    def sampled_ahead(self) -> GroupBatch | None:
        """The next batch of all processes, for a checkpoint, if it has been begun; waits for it."""
        return None

    def go_on_with(self, batch: GroupBatch | None) -> None:
        """Takes the next batch from a checkpoint, if it was begun."""
        return


class OfflineFeed(BatchFeed):
    """A data set as one batch; `n_epochs` counts the passes over it. Each process prepares a block of it."""

    repeatable = True
    num_batches = 1

    def __init__(self, groups: Sequence[Group], model: Model) -> None:
        _check_enough(len(groups), "records")
        self._groups, self._model = groups, model
        self.figures: dict[str, float] = {}
        self.groups_per_batch = len(groups)

    def batch(self, index: int) -> GroupBatch:
        return self._model.encode([self._groups[place] for place in own_block(len(self._groups))])


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
        _check_enough(options.batch_size, "prompts in a batch")
        self._prompts, self._policy, self._reward = list(prompts), policy, reward
        self._sampling, self._options, self._seed = sampling, options, seed
        self._sampler = sampler or OwnSampler()
        self._next: Callable[[], GroupBatch] | None = None
        self.figures: dict[str, float] = {}
        self.num_batches = options.iterations
        self.groups_per_batch = options.batch_size

    def batch(self, index: int) -> GroupBatch:
        batch = evenly(self._sampled(index))
        scored = score_batch(batch.replace(response_limit=self._sampling.max_tokens), self._reward)
        asked = self._options.batch_size * self._options.group_size
        share = 1 - int(sum_over_processes(torch.tensor(scored.num_responses, device=batch.device))) / asked
        self.figures = {"abstained": share} if share else {}
        self.examples = _examples(scored)
        check_abstentions(share, self._options.max_abstained)
        return evenly(scored) if share else scored

    def _sampled(self, index: int) -> GroupBatch:
        """This process's block of a batch. A sampler that works ahead then begins the next one."""
        batch = (self._next or self._begun(index, version=index))()
        self._next = None
        if self._sampler.ahead and index + 1 < self.num_batches:
            barrier()  # no process samples any more with the weights that are now replaced
            self._next = self._begun(index + 1, version=index)
        return batch

    def _begun(self, index: int, *, version: int) -> Callable[[], GroupBatch]:
        """What gives this process's block of a batch, sampled with the present weights."""
        size = self._options.batch_size
        places = own_block(size)
        self._sampler.sync(self._policy, version)
        barrier()
        sample = self._sampler.begin if self._sampler.ahead else partial(partial, self._sampler.generate)
        return sample(
            [self._prompt_at(index * size + place) for place in places],
            n=self._options.group_size,
            sampling=self._sampling,
            seed=self._seed * 1_000_003 + index,
            places=places,
        )

    def sampled_ahead(self) -> GroupBatch | None:
        if self._next is None:
            return None
        own = self._next()
        self._next = lambda: own
        return gathered(own)

    def go_on_with(self, batch: GroupBatch | None) -> None:
        if batch is not None:
            own = batch.select(own_block(batch.num_groups))
            self._next = lambda: own

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        return self._sampler.corrected(batch)

    def _prompt_at(self, position: int) -> Prompt:
        round_number, offset = divmod(position, len(self._prompts))
        return self._prompts[prompt_order(len(self._prompts), seed=self._seed, round_number=round_number)[offset]]


def _examples(batch: GroupBatch) -> list[Group]:
    """The first group, scored by the rewards."""
    if not batch.num_groups:
        return []
    first = batch.select([0])
    assert first.rewards is not None
    return [replace(first.groups[0], scores=tuple(first.rewards.tolist()))]


def _check_enough(count: int, what: str) -> None:
    if count < num_processes():
        raise InputError(f"{count} {what} for {num_processes()} processes", fix="use fewer processes")


def prompt_order(count: int, *, seed: int, round_number: int) -> list[int]:
    """The order of the prompts in a pass over all of them, the same in all processes."""
    return _shuffled(count, f"prompts/{seed}/{round_number}")


def epoch_order(num_groups: int, *, seed: int, batch: int, epoch: int) -> list[int]:
    """The order of a batch's groups in an epoch, the same in all processes."""
    return _shuffled(num_groups, f"order/{seed}/{batch}/{epoch}/0")


def _shuffled(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def planned_steps(feed: BatchFeed, options: LearningOptions) -> int:
    """Optimisation steps of a whole run, if no batch ends early."""
    steps = math.ceil(feed.groups_per_batch / options.minibatch_size)
    return max(1, feed.num_batches * options.n_epochs * steps)
