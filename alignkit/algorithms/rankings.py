"""What the family shares: log-probabilities of whole responses under policy and reference, compared in rankings.

Where a loss is one of pairs, a ranking of K responses gives all its strictly ordered pairs. Their losses are averaged
within the group and then over groups, so that a prompt counts once whatever its K; for pairs of two this is the papers'
mean over pairs. Other losses take the ranking as it is. The K responses are scored in one pass however many pairs they
are in. The reference is asked once for the whole data set.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch

from alignkit.algorithms.cached import cached_logprobs
from alignkit.algorithms.options import OfflineOptions, PreferenceOptions
from alignkit.interfaces import Feed, Optimizer
from alignkit.ops.divergences import derivative
from alignkit.ops.ranking_losses import Rankings, pair_accuracy, with_ordered_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics
    from alignkit.options import Config

OfflineT = TypeVar("OfflineT", bound=OfflineOptions)
OptionsT = TypeVar("OptionsT", bound=PreferenceOptions)


@dataclass(frozen=True)
class ResponseLogprobs:
    """Log-probabilities of whole responses, in nats.

    Attributes:
        logprobs, ref_logprobs: [S] sums over each response's tokens; the reference's None for algorithms without one.
        lengths: [S] response tokens, the stop token included.
    """

    logprobs: Tensor
    ref_logprobs: Tensor | None
    lengths: Tensor

    @property
    def logratios(self) -> Tensor:
        """[S] log of the policy's over the reference's probability. Raises ValueError where there is no reference."""
        if self.ref_logprobs is None:
            raise ValueError("there are no reference log-probabilities: this algorithm sets uses_reference = False")
        return self.logprobs - self.ref_logprobs

    @property
    def mean_logprobs(self) -> Tensor:
        """[S] the policy's log-probability a token."""
        return self.logprobs / self.lengths

    def at(self, index: Tensor) -> ResponseLogprobs:
        """The responses [Q] of an index into [S]."""
        reference = None if self.ref_logprobs is None else self.ref_logprobs[index]
        return ResponseLogprobs(self.logprobs[index], reference, self.lengths[index])


class OfflineLoss(Optimizer[OfflineT]):
    """Base of all: the reference is asked once, and responses are scored as wholes."""

    Config: ClassVar[type[Config]] = OfflineOptions
    uses_reference = True

    def implicit_rewards(self, responses: ResponseLogprobs) -> Tensor:
        """[S] the reward that the policy stands for, up to a constant of the prompt."""
        return self.config.beta * derivative(responses.logratios, *self.config.divergence)

    def with_reference(self, batch: GroupBatch) -> GroupBatch:
        """The batch with the reference's log-probabilities [R], where the algorithm has a reference."""
        if self.reference is None:
            return batch
        if not batch.num_groups:
            return batch.replace(ref_logprobs=batch.response_ids.new_zeros(0, dtype=torch.float32))
        logprobs = cached_logprobs(self.reference, batch, self.max_tokens, self.context.cache)
        return batch.replace(ref_logprobs=logprobs)

    def score(self, batch: GroupBatch) -> ResponseLogprobs:
        """The responses of a prepared micro-batch, with the policy's gradient."""
        return self.whole(batch, self.policy.forward(batch).logprobs)

    def whole(self, batch: GroupBatch, logprobs: Tensor) -> ResponseLogprobs:
        """The responses of a prepared batch, by the policy's log-probabilities [R] of their tokens."""
        reference = None
        if self.uses_reference:
            if batch.ref_logprobs is None:
                raise ValueError("the batch has no ref_logprobs: prepare() comes before loss()")
            reference = batch.sum_by_response(batch.ref_logprobs)
        return ResponseLogprobs(batch.sum_by_response(logprobs), reference, batch.lengths)


class RankingLoss(OfflineLoss[OptionsT]):
    """Base of losses on rankings. A member defines `group_losses`; `uses_reference = False` where it needs none."""

    Config: ClassVar[type[Config]] = PreferenceOptions
    consumes = Feed.RANKINGS
    _groups_without_order = 0

    @abstractmethod
    def group_losses(self, responses: ResponseLogprobs, rankings: Rankings) -> Tensor:
        """[G] the loss of each ranking."""

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Drops groups without an ordered pair (counted) and adds the reference's log-probabilities [R]."""
        kept = with_ordered_pairs(batch)
        self._groups_without_order += batch.num_groups - kept.num_groups
        self.batch_metrics = {"groups_without_order": float(self._groups_without_order)}
        return self.with_reference(kept)

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The mean over groups of their weighted losses, and what a person watches."""
        responses = self.score(batch)
        rankings = Rankings.of_batch(batch)
        losses = self.group_losses(responses, rankings)
        metrics = self._metrics(batch, rankings, responses)
        if self.config.sft_weight:
            likelihood = rankings.mean_over_best(responses.mean_logprobs)
            losses = losses - self.config.sft_weight * likelihood
            metrics["nll"] = -batch.group_mean(likelihood.detach())
        return batch.group_mean(batch.group_weights * losses), metrics

    def _metrics(self, batch: GroupBatch, rankings: Rankings, responses: ResponseLogprobs) -> Metrics:
        rewards = self.implicit_rewards(responses).detach()

        def mean(of_pairs: Tensor) -> Tensor:
            return batch.group_mean(rankings.mean_by_group(of_pairs))

        chosen, rejected = rewards[rankings.better], rewards[rankings.worse]
        metrics: Metrics = {
            "accuracy": batch.group_mean(pair_accuracy(rewards, rankings)),
            "margin": mean(chosen - rejected),
            "chosen_reward": mean(chosen),
            "rejected_reward": mean(rejected),
            "chosen_logprobs": mean(responses.logprobs[rankings.better].detach()),
            "rejected_logprobs": mean(responses.logprobs[rankings.worse].detach()),
        }
        if responses.ref_logprobs is not None:
            # The KL from the reference to the policy, if the responses were sampled from the reference.
            metrics["reference_kl"] = batch.response_mean(-responses.logratios.detach())
        return metrics


class PreferenceLoss(RankingLoss[OptionsT]):
    """Base of losses on pairs: a member defines `pair_losses`."""

    @abstractmethod
    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        """[Q] the loss of each pair."""

    def leads(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        """[Q] by how much the chosen response's implicit reward is above the rejected one's."""
        return self.implicit_rewards(chosen) - self.implicit_rewards(rejected)

    def group_losses(self, responses: ResponseLogprobs, rankings: Rankings) -> Tensor:
        return rankings.mean_by_group(self.pair_losses(responses.at(rankings.better), responses.at(rankings.worse)))
