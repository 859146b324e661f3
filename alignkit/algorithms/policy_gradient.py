"""The base of policy gradients: rewards, the policy loss, and the figures of a batch.

The last token of a response gets the score; if the KL is part of the reward, every token gets its KL (Ouyang et al.,
arXiv:2203.02155). An algorithm builds `with_advantages` from these parts and may add terms to `loss`. It takes one pass
over its rollouts unless its `surrogate` corrects for the steps already taken, as in `ClippedPolicyGradient`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch

from alignkit.algorithms.online import HeldAlgorithm
from alignkit.algorithms.options import ClippedOptions, PolicyGradientOptions
from alignkit.batch import GroupBatch
from alignkit.footprint import Held
from alignkit.ops import surrogates
from alignkit.ops.advantages import RunningMoments
from alignkit.ops.distributed import process_index, sum_over_processes
from alignkit.ops.kl import kl_estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from alignkit.companions import Metrics
    from alignkit.components import Context
    from alignkit.options import Config
    from alignkit.outputs import PolicyOutput

OptionsT = TypeVar("OptionsT", bound=PolicyGradientOptions)
ClippedT = TypeVar("ClippedT", bound=ClippedOptions)


def known(of: GroupBatch | PolicyOutput, field: str) -> Tensor:
    """A field of a batch or of a policy's output. Raises ValueError if it is missing."""
    found: Tensor | None = getattr(of, field)
    if found is None:
        fix = "score and prepare the batch first" if isinstance(of, GroupBatch) else "the policy did not give it"
        raise ValueError(f"{type(of).__name__}.{field} is missing: {fix}")
    return found


class PolicyGradient(HeldAlgorithm[OptionsT]):
    """Base of online algorithms that climb the gradient of the expected reward.

    Attributes:
        reward_moments: mean and variance of all scores seen so far.
    """

    Config: ClassVar[type[Config]] = PolicyGradientOptions
    couples_responses = False
    weighs_rollouts = True

    def __init__(self, config: OptionsT | None = None, context: Context | None = None, **parts: Any) -> None:
        config = config if config is not None else cast("OptionsT", self.Config())
        self.uses_reference = config.needs_reference
        super().__init__(config, context, **parts)
        self.reward_moments = RunningMoments()

    @classmethod
    def holds(cls, config: OptionsT) -> tuple[Held, ...]:
        return tuple(held for held in super().holds(config) if held.name != "reference") + (
            (Held(name="reference"),) if config.needs_reference else ()
        )

    @torch.no_grad()
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Adds logprobs, ref_logprobs (if there is a reference) and advantages, all [R].

        Raises:
            ValueError: the batch has no rewards.
        """
        return self.with_advantages(super().prepare(batch))

    @abstractmethod
    def with_advantages(self, batch: GroupBatch) -> GroupBatch:
        """The batch with `advantages` [R]. Calls `observe`."""

    def shaped_scores(self, batch: GroupBatch) -> Tensor:
        """[S] the batch's scores after `shaped`; updates the running moments with them."""
        scores = known(batch, "rewards").float()
        if self.config.normalize_rewards:
            self.reward_moments.update(scores)
        return self.shaped(scores)

    def shaped(self, scores: Tensor) -> Tensor:
        """[S] scores, normalised and clipped as the options say."""
        limit = self.config.reward_clip
        if self.config.normalize_rewards:
            scores = self.reward_moments.normalize(scores)
        return scores.clamp(-limit, limit) if limit else scores

    def token_rewards(self, batch: GroupBatch, scores: Tensor) -> Tensor:
        """[R] the KL penalty of each token, if the KL is part of the reward; the last token also gets the score [S],
        less the penalty for being cut off."""
        options, rewards = self.config, torch.zeros_like(known(batch, "logprobs"))
        if options.kl_place == "reward" and batch.ref_logprobs is not None:
            kl = kl_estimate(known(batch, "logprobs"), batch.ref_logprobs, options.kl_estimator)
            rewards = -self.kl_controller.coef * kl
        return rewards.index_add(0, batch.last_token, scores - options.missing_eos_penalty * ~batch.finished)

    def only(self, batch: GroupBatch, kept: Tensor) -> GroupBatch:
        """The responses of a batch with advantages where `kept` [S] is True; observes the whole batch.

        If no process keeps any, the first group of all with advantages of 0, so that there is always a step to take.
        """
        counts = sum_over_processes(torch.stack([kept.sum(), kept.new_tensor(len(kept), dtype=torch.long)]))
        self.observe(batch, kept=float(counts[0] / counts[1]))
        if not counts[0]:
            batch = batch.replace(advantages=torch.zeros_like(known(batch, "advantages")))
            kept = (batch.group_index == 0) & (process_index() == 0)
        return batch if bool(kept.all()) else batch.select_responses(kept)

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The surrogate, the KL if it is part of the loss, and the entropy bonus."""
        return self.policy_loss(batch, self.forward(batch))

    def forward(self, batch: GroupBatch, **more: Any) -> PolicyOutput:
        """One policy pass with what `policy_loss` needs; `more` goes to `Policy.forward`."""
        exact_kl = self.config.kl_place == "loss" and self.config.kl_estimator == "full"
        return self.policy.forward(
            batch, entropy=self.config.ent_coef > 0, kl_to=self.reference if exact_kl else None, **more
        )

    def policy_loss(self, batch: GroupBatch, output: PolicyOutput) -> tuple[Tensor, Metrics]:
        """The policy loss, from its output on a batch with `logprobs` and `advantages`."""
        options, old_logprobs = self.config, known(batch, "logprobs")
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
            loss = loss - options.ent_coef * batch.token_mean(known(output, "entropy"))
        return loss, metrics

    def log_ratio(self, batch: GroupBatch, logprobs: Tensor) -> Tensor:
        """[R] log of the probability ratio to the sampling policy, per action; here an action is a token."""
        return logprobs - known(batch, "logprobs")

    def surrogate(self, batch: GroupBatch, logprobs: Tensor, log_ratio: Tensor) -> Tensor:
        """[R] the loss of each token, without a correction for the steps already taken."""
        return -known(batch, "advantages") * logprobs

    def ratio_figures(self, batch: GroupBatch, deviation: Tensor) -> Metrics:
        """Figures from the ratio's deviation from 1, [R]."""
        return {"ratio_deviation": batch.token_mean(deviation.abs())}

    def _aggregate(self, batch: GroupBatch, x: Tensor) -> Tensor:
        length = self.config.loss_length or batch.response_limit
        if not length:
            raise ValueError("loss_length = 0 needs a batch with response_limit")
        return surrogates.aggregate(batch, x, self.config.aggregation, length)

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        return not self.config.stop_kl or metrics["approx_kl"] <= self.config.stop_kl

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rewards": self.reward_moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.reward_moments.load_state_dict(state["rewards"])


class ClippedPolicyGradient(PolicyGradient[ClippedT]):
    """Base of policy gradients that take several steps on the same rollouts, corrected by a bounded ratio."""

    Config: ClassVar[type[Config]] = ClippedOptions

    def log_ratio(self, batch: GroupBatch, logprobs: Tensor) -> Tensor:
        return surrogates.pooled_log_ratio(super().log_ratio(batch, logprobs), batch, self.config.ratio_level)

    def surrogate(self, batch: GroupBatch, logprobs: Tensor, log_ratio: Tensor) -> Tensor:
        options, advantages = self.config, known(batch, "advantages")
        if options.surrogate == "clip":
            low, high = options.clip_range, options.upper_clip_range
            losses = surrogates.clipped_policy_loss(
                log_ratio, advantages, low, clip_range_high=high, dual_clip=options.dual_clip
            )
        else:
            losses = surrogates.truncated_policy_loss(log_ratio, advantages, logprobs, 1 + options.upper_clip_range)
        if options.off_policy_kl:
            moved = logprobs - known(batch, "logprobs")
            losses = losses * surrogates.off_policy_mask(moved, advantages, batch, options.off_policy_kl)
        return losses

    def ratio_figures(self, batch: GroupBatch, deviation: Tensor) -> Metrics:
        options = self.config
        outside = (deviation > options.upper_clip_range) | (deviation < -options.clip_range)
        return {**super().ratio_figures(batch, deviation), "clip_fraction": batch.token_mean(outside.float())}
