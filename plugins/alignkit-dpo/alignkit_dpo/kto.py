"""Kahneman-Tversky optimisation, arXiv:2402.01306: single responses, each labelled desirable or not.

A response's gain or loss is measured from a baseline z, the policy's KL from the reference. It is estimated from
mismatched pairs: each prompt of a step with the response to the previous prompt, the first with the last's.
Deliberately different: the baseline is over the whole step, all micro-batches and processes; a prompt with several
responses lends all of them; and rankings work directly, without being converted to labels first.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from alignkit import Feed, InputError
from alignkit.algorithms import OfflineLoss, policy_logprobs
from alignkit.ops import from_all_processes, mean_over_processes, process_index
from alignkit_dpo.options import KTOOptions

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import Group, GroupBatch, Metrics


class KTO(OfflineLoss[KTOOptions]):
    """Kahneman-Tversky optimisation."""

    consumes = Feed.LABELS
    couples_responses = False
    _baseline: Tensor | None = None
    _desirable: Tensor
    _unlabelled = 0

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Adds `labels` [S] and the reference's log-probabilities [R]; drops responses without a label."""
        labels = [label for group in batch.groups for label in desirability(group)]
        labelled = batch.replace(labels=torch.tensor([bool(label) for label in labels], device=batch.device))
        known = torch.tensor([label is not None for label in labels], device=batch.device)
        self._unlabelled += labels.count(None)
        self.batch_metrics = {"responses_without_label": float(self._unlabelled)}
        return self.with_reference(labelled if bool(known.all()) else labelled.select_responses(known))

    def begin_step(self, batch: GroupBatch) -> None:
        """Measures the baseline and the share of desirable responses."""
        before, longest, prompts = surroundings(batch)
        others, budget = mismatched(batch, before, longest), self.max_tokens
        assert self.reference is not None and batch.labels is not None
        logratios = policy_logprobs(self.policy, others, budget) - policy_logprobs(self.reference, others, budget)
        # A single prompt has no mismatched pair, so its baseline is 0.
        divergence = batch.response_mean(others.sum_by_response(logratios)) * (prompts > 1)
        self._baseline = self.config.beta * mean_over_processes(divergence).clamp(min=0)
        self._desirable = mean_over_processes(batch.response_mean(batch.labels.float()))
        figures = {"baseline": float(self._baseline), "desirable": float(self._desirable)}
        self.batch_metrics = {**self.batch_metrics, **figures}

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The mean over responses of their weighted losses."""
        if self._baseline is None or batch.labels is None:
            raise ValueError("call prepare() and begin_step() before loss()")
        responses, desirable = self.score(batch), batch.labels
        rewards = self.implicit_rewards(responses)
        gains = rewards - self._baseline
        weights = torch.where(desirable, self.config.desirable_weight, self.config.undesirable_weight)
        losses = weights * torch.where(desirable, -gains, gains).sigmoid()
        rewards, gains = rewards.detach(), gains.detach()
        metrics: Metrics = {
            "accuracy": batch.response_mean(((gains > 0) == desirable).float()),
            "desirable_reward": batch.response_mean(rewards * desirable) / self._desirable.clamp(min=1e-9),
            "undesirable_reward": batch.response_mean(rewards * ~desirable) / (1 - self._desirable).clamp(min=1e-9),
            "reference_kl": batch.response_mean(-responses.logratios.detach()),
        }
        return batch.response_mean(losses), metrics


def desirability(group: Group) -> list[bool | None]:
    """Each response's label; in a ranking, whether it beats more responses than beat it, None if as many.

    Raises:
        InputError: the group has neither labels nor ranks.
    """
    if group.labels is not None:
        return list(group.labels)
    if group.ranks is None:
        raise InputError(
            f"a record has neither labels nor ranks: {group.prompt.plain[-80:]!r}",
            fix="give each response a label (true or false), or rank them",
        )
    wins = [0] * len(group.ranks)
    for better, worse in group.preferred_pairs():
        wins[better] += 1
        wins[worse] -= 1
    return [None if balance == 0 else balance > 0 for balance in wins]


def surroundings(batch: GroupBatch) -> tuple[GroupBatch, int, int]:
    """What a process knows of its step through the others: (the group before its first one, the last one of all before
    the very first; the tokens of the step's longest prompt with a response; the number of prompts)."""
    counts = batch.totals is None or math.isfinite(batch.totals.groups)
    last = batch.select([batch.num_groups - 1]).to("cpu")
    own = (last, longest_sequence(batch), batch.num_groups) if counts else (None, 0, 0)
    lasts, lengths, groups = zip(*from_all_processes(own), strict=True)
    behind = [*reversed(lasts[: process_index()]), *reversed(lasts)]
    before: GroupBatch = next(group for group in behind if group is not None)
    return before.to(batch.device), max(lengths), sum(groups)


def longest_sequence(batch: GroupBatch) -> int:
    """The tokens of the longest prompt with one of its responses."""
    return int((batch.prompt_lengths[batch.group_index] + batch.lengths).max())


def mismatched(batch: GroupBatch, before: GroupBatch, longest: int) -> GroupBatch:
    """Each prompt with the responses to the previous prompt, the first with those of the group `before`.

    Responses are cut so that prompt and response are at most `longest` tokens long, or the longest of the batch, and
    stay within the model's context.
    """
    longest = max(longest, longest_sequence(batch))
    rolled = batch.concat([before, batch.select(range(batch.num_groups - 1))])
    room = (longest - batch.prompt_lengths)[rolled.group_index]
    position = torch.arange(rolled.num_tokens, device=batch.device) - rolled.first_token[rolled.response_index]
    groups = zip(batch.groups, rolled.groups, strict=True)
    return rolled.replace(
        prompt_ids=batch.prompt_ids,
        prompt_lengths=batch.prompt_lengths,
        response_ids=rolled.response_ids[position < room[rolled.response_index]],
        lengths=torch.minimum(rolled.lengths, room),
        groups=tuple(replace(theirs, prompt=own.prompt) for own, theirs in groups),
        ref_logprobs=None,
    )
