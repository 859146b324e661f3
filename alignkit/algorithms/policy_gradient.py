"""What policy gradients share: rewards, the loss of the policy, and the figures of a batch.

The score is paid at a response's last token, and the KL at every token where it is part of the reward, as in Ouyang et
al., arXiv:2203.02155. An algorithm defines `with_advantages`, from these parts, and adds to `loss` what else it has. It
takes one pass over its rollouts unless its `surrogate` corrects for the steps already taken, as that of
`ClippedPolicyGradient` does.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch

from alignkit.algorithms.online import HeldAlgorithm
from alignkit.algorithms.options import ClippedOptions, PolicyGradientOptions
from alignkit.ops.advantages import RunningMoments
from alignkit.ops.distributed import sum_over_processes
from alignkit.ops.kl import kl_estimate
from alignkit.ops.surrogates import (
    aggregate,
    clipped_policy_loss,
    off_policy_mask,
    pooled_log_ratio,
    truncated_policy_loss,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics
    from alignkit.components import Context
    from alignkit.options import Config
    from alignkit.outputs import PolicyOutput

OptionsT = TypeVar("OptionsT", bound=PolicyGradientOptions)
ClippedT = TypeVar("ClippedT", bound=ClippedOptions)
Known = TypeVar("Known")


def known(field: Known | None) -> Known:
    """The field of a batch. Raises ValueError where it is missing."""
    if field is None:
        raise ValueError(
            "a field is missing that the algorithm needs: a batch is scored, then prepared, then trained on"
        )
    return field


class PolicyGradient(HeldAlgorithm[OptionsT]):
    """Base of online algorithms that climb the gradient of the expected reward.

    Attributes:
        reward_moments: of all scores seen so far.
    """

    Config: ClassVar[type[Config]] = PolicyGradientOptions
    couples_responses = False

    def __init__(self, config: OptionsT | None = None, context: Context | None = None, **parts: Any) -> None:
        config = config if config is not None else cast("OptionsT", self.Config())
        self.uses_reference = config.needs_reference
        super().__init__(config, context, **parts)
        self.reward_moments = RunningMoments()

    @torch.no_grad()
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Adds logprobs, ref_logprobs where there is a reference, and advantages, all [R].

        Raises:
            ValueError: the batch has no rewards.
        """
        return self.with_advantages(super().prepare(batch))

    @abstractmethod
    def with_advantages(self, batch: GroupBatch) -> GroupBatch:
        """The batch with `advantages` [R]. Calls `observe`."""

    def shaped_scores(self, batch: GroupBatch) -> Tensor:
        """[S] the batch's scores, which the running moments take note of, as `shaped`."""
        scores = known(batch.rewards).float()
        if self.config.normalize_rewards:
            self.reward_moments.update(scores)
        return self.shaped(scores)

    def shaped(self, scores: Tensor) -> Tensor:
        """[S] scores, normalised and clipped where the options say so."""
        limit = self.config.reward_clip
        if self.config.normalize_rewards:
            scores = self.reward_moments.normalize(scores)
        return scores.clamp(-limit, limit) if limit else scores

    def token_rewards(self, batch: GroupBatch, scores: Tensor) -> Tensor:
        """[R] the KL penalty at every token where it is part of the reward; at the last one the score [S], less the
        penalty for being cut off."""
        options, rewards = self.config, torch.zeros_like(known(batch.logprobs))
        if options.kl_place == "reward" and batch.ref_logprobs is not None:
            kl = kl_estimate(known(batch.logprobs), batch.ref_logprobs, options.kl_estimator)
            rewards = -self.kl_controller.coef * kl
        return rewards.index_add(0, batch.last_token, scores - options.missing_eos_penalty * ~batch.finished)

    def only(self, batch: GroupBatch, kept: Tensor) -> GroupBatch:
        """The responses of a batch with advantages that `kept` [S] says are trained on; observes all of it.

        Something is always left to take a step with: where nothing is, the first group with advantages of 0.
        """
        counts = sum_over_processes(torch.stack([kept.sum(), kept.new_tensor(len(kept), dtype=torch.long)]))
        self.observe(batch, kept=float(counts[0] / counts[1]))
        if not bool(kept.any()):
            batch, kept = batch.replace(advantages=torch.zeros_like(known(batch.advantages))), batch.group_index == 0
        return batch if bool(kept.all()) else batch.select_responses(kept)

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The surrogate, the KL where it is part of the loss, and the entropy bonus."""
        return self.policy_loss(batch, self.forward(batch))

    def forward(self, batch: GroupBatch, **more: Any) -> PolicyOutput:
        """What `policy_loss` needs of the policy, in one pass, and `more` that `Policy.forward` can be asked for."""
        exact_kl = self.config.kl_place == "loss" and self.config.kl_estimator == "full"
        return self.policy.forward(
            batch, entropy=self.config.ent_coef > 0, kl_to=self.reference if exact_kl else None, **more
        )

    def policy_loss(self, batch: GroupBatch, output: PolicyOutput) -> tuple[Tensor, Metrics]:
        """The loss of the policy from what it says of a batch with `logprobs` and `advantages`."""
        options, old_logprobs = self.config, known(batch.logprobs)
        log_ratio = self.log_ratio(batch, output.logprobs)
        policy_loss = self._aggregate(batch, self.surrogate(batch, output.logprobs, log_ratio))
        loss = policy_loss
        metrics: Metrics = {
            "policy_loss": policy_loss.detach(),
            "approx_kl": batch.token_mean(kl_estimate(old_logprobs, output.logprobs.detach(), "k3")),
            **self.ratio_figures(batch, log_ratio.detach().expm1()),
        }
        if options.kl_place == "loss" and batch.ref_logprobs is not None:
            kl = output.kl
            if kl is None:
                kl = kl_estimate(output.logprobs, batch.ref_logprobs, options.kl_estimator)
            kl_loss = self._aggregate(batch, kl * log_ratio.exp() if options.kl_importance else kl)
            loss = loss + self.kl_controller.coef * kl_loss
            metrics["kl_loss"] = kl_loss.detach()
        if options.ent_coef:
            loss = loss - options.ent_coef * batch.token_mean(known(output.entropy))
        return loss, metrics

    def log_ratio(self, batch: GroupBatch, logprobs: Tensor) -> Tensor:
        """[R] log of the probability ratio to the policy that sampled, of what an action is: each token."""
        return logprobs - known(batch.logprobs)

    def surrogate(self, batch: GroupBatch, logprobs: Tensor, log_ratio: Tensor) -> Tensor:
        """[R] the loss of each token: without a correction for the steps already taken."""
        return -known(batch.advantages) * logprobs

    def ratio_figures(self, batch: GroupBatch, deviation: Tensor) -> Metrics:
        """Figures of how far the ratio is from 1, [R]."""
        return {"ratio_deviation": batch.token_mean(deviation.abs())}

    def _aggregate(self, batch: GroupBatch, x: Tensor) -> Tensor:
        length = self.config.loss_length or batch.response_limit
        if not length:
            raise ValueError("loss_length = 0 needs a batch that knows its response_limit")
        return aggregate(batch, x, self.config.aggregation, length)

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        return not self.config.stop_kl or metrics["approx_kl"] <= self.config.stop_kl

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rewards": self.reward_moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.reward_moments.load_state_dict(state["rewards"])


class ClippedPolicyGradient(PolicyGradient[ClippedT]):
    """Base of those that correct for several steps on the same rollouts by a ratio, as far as it may go."""

    Config: ClassVar[type[Config]] = ClippedOptions

    def log_ratio(self, batch: GroupBatch, logprobs: Tensor) -> Tensor:
        return pooled_log_ratio(super().log_ratio(batch, logprobs), batch, self.config.ratio_level)

    def surrogate(self, batch: GroupBatch, logprobs: Tensor, log_ratio: Tensor) -> Tensor:
        options, advantages = self.config, known(batch.advantages)
        if options.surrogate == "clip":
            low, high = options.clip_range, options.upper_clip_range
            losses = clipped_policy_loss(log_ratio, advantages, low, clip_range_high=high, dual_clip=options.dual_clip)
        else:
            losses = truncated_policy_loss(log_ratio, advantages, logprobs, 1 + options.upper_clip_range)
        if options.off_policy_kl:
            moved = logprobs - known(batch.logprobs)
            losses = losses * off_policy_mask(moved, advantages, batch, options.off_policy_kl)
        return losses

    def ratio_figures(self, batch: GroupBatch, deviation: Tensor) -> Metrics:
        options = self.config
        outside = (deviation > options.upper_clip_range) | (deviation < -options.clip_range)
        return {**super().ratio_figures(batch, deviation), "clip_fraction": batch.token_mean(outside.float())}
