"""Bases of losses on rankings: log-probabilities of whole responses under policy and reference, compared.

A loss on pairs takes all strictly ordered pairs of a ranking of K responses. Their losses are averaged within the group
and then over groups, so that a prompt counts once whatever its K; for K = 2 this is the papers' mean over pairs. Other
losses take the whole ranking. The K responses are scored in one pass however many pairs they form. The reference scores
the whole data set once.
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
        logprobs, ref_logprobs: [S] sums over each response's tokens; ref_logprobs is None without a reference.
        lengths: [S] response tokens, the stop token included.
    """

    logprobs: Tensor
    ref_logprobs: Tensor | None
    lengths: Tensor

    @property
    def logratios(self) -> Tensor:
        """[S] log of the policy's over the reference's probability. Raises ValueError without a reference."""
        if self.ref_logprobs is None:
            raise ValueError("no reference log-probabilities: this algorithm sets uses_reference = False")
        return self.logprobs - self.ref_logprobs

    @property
    def mean_logprobs(self) -> Tensor:
        """[S] the policy's mean log-probability per token."""
        return self.logprobs / self.lengths

    def at(self, index: Tensor) -> ResponseLogprobs:
        """The responses [Q] at an index into [S]."""
        reference = None if self.ref_logprobs is None else self.ref_logprobs[index]
        return ResponseLogprobs(self.logprobs[index], reference, self.lengths[index])


class OfflineLoss(Optimizer[OfflineT]):
    """Base of all: the reference scores the data once, and a response counts as a whole."""

    Config: ClassVar[type[Config]] = OfflineOptions
    uses_reference = True

    def implicit_rewards(self, responses: ResponseLogprobs) -> Tensor:
        """[S] the policy's implicit reward, up to a constant per prompt."""
        return self.config.beta * derivative(responses.logratios, *self.config.divergence)

    def with_reference(self, batch: GroupBatch) -> GroupBatch:
        """The batch with the reference's log-probabilities [R], if the algorithm has a reference."""
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
        """The responses of a prepared batch, from the policy's log-probabilities [R] of their tokens."""
        reference = None
        if self.uses_reference:
            if batch.ref_logprobs is None:
                raise ValueError("the batch has no ref_logprobs: call prepare() before loss()")
            reference = batch.sum_by_response(batch.ref_logprobs)
        return ResponseLogprobs(batch.sum_by_response(logprobs), reference, batch.lengths)


class RankingLoss(OfflineLoss[OptionsT]):
    """Base of losses on rankings. A subclass defines `group_losses`, and `uses_reference = False` if it needs none."""

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
        """The mean over groups of their weighted losses, and metrics to watch."""
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
    """Base of losses on pairs: a subclass defines `pair_losses`."""

    @abstractmethod
    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        """[Q] the loss of each pair."""

    def leads(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        """[Q] the chosen response's implicit reward minus the rejected one's."""
        return self.implicit_rewards(chosen) - self.implicit_rewards(rejected)

    def group_losses(self, responses: ResponseLogprobs, rankings: Rankings) -> Tensor:
        losses = self.pair_losses(responses.at(rankings.better), responses.at(rankings.worse))
        if losses.shape != rankings.better.shape:
            wanted, found = (*rankings.better.shape,), (*losses.shape,)
            raise ValueError(f"pair_losses must give a loss for each pair, of shape {wanted}, not {found}")
        return rankings.mean_by_group(losses)
