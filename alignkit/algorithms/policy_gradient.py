"""What policy gradients share: rewards, the KL to the reference, the surrogate loss, and the figures of a batch.

The score is paid at a response's last token, and the KL at every token where it is part of the reward, as in Ouyang et
al., arXiv:2203.02155. An algorithm defines `with_advantages`, from these parts, and adds to `loss` what else it has. A
batch never changes its own KL coefficient: the controller hears of a batch when the next one is prepared.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch

from alignkit.algorithms.online import OnlineAlgorithm
from alignkit.algorithms.options import PolicyGradientOptions
from alignkit.algorithms.passes import policy_logprobs
from alignkit.ops.advantages import RunningMoments
from alignkit.ops.distributed import sum_over_processes
from alignkit.ops.kl import kl_controller, kl_estimate
from alignkit.ops.rollouts import rollout_figures
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
    from alignkit.interfaces import Policy, RewardSource
    from alignkit.options import Config
    from alignkit.outputs import PolicyOutput

OptionsT = TypeVar("OptionsT", bound=PolicyGradientOptions)
Known = TypeVar("Known")


def known(field: Known | None) -> Known:
    """The field of a batch. Raises ValueError where it is missing."""
    if field is None:
        raise ValueError(
            "a field is missing that the algorithm needs: a batch is scored, then prepared, then trained on"
        )
    return field


class PolicyGradient(OnlineAlgorithm[OptionsT]):
    """Base of online algorithms that climb the gradient of the expected reward.

    Attributes:
        kl_controller: gives the coefficient of the KL to the reference, `coef`.
        reward_moments: of all scores seen so far.
    """

    Config: ClassVar[type[Config]] = PolicyGradientOptions
    couples_responses = False

    def __init__(
        self,
        config: OptionsT | None = None,
        context: Context | None = None,
        *,
        policy: Policy[Any],
        reward: RewardSource[Any] | None = None,
    ) -> None:
        config = config if config is not None else cast("OptionsT", self.Config())
        self.uses_reference = config.needs_reference
        super().__init__(config, context, policy=policy, reward=reward)
        self.kl_controller = kl_controller(
            config.kl_controller,
            config.kl_coef,
            target=config.kl_target,
            horizon=config.kl_horizon,
            end=config.kl_coef_end,
        )
        self.reward_moments = RunningMoments()
        self._last_kl: list[float] = []

    @torch.no_grad()
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Adds logprobs, ref_logprobs where there is a reference, and advantages, all [R].

        Raises:
            ValueError: the batch has no rewards.
        """
        if self._last_kl:
            self.kl_controller.update(*self._last_kl)
        return self.with_advantages(self.with_reference(self.with_logprobs(batch)))

    @abstractmethod
    def with_advantages(self, batch: GroupBatch) -> GroupBatch:
        """The batch with `advantages` [R]. Calls `observe`."""

    def with_reference(self, batch: GroupBatch) -> GroupBatch:
        """The batch with `ref_logprobs`, where there is a reference."""
        if self.reference is None:
            return batch
        return batch.replace(ref_logprobs=policy_logprobs(self.reference, batch, self.max_tokens))

    def with_logprobs(self, batch: GroupBatch) -> GroupBatch:
        """The batch with `logprobs`: the sampler's, or where there are none those of the policy as it is now."""
        if batch.logprobs is not None:
            return batch
        return batch.replace(logprobs=policy_logprobs(self.policy, batch, self.max_tokens))

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

    def observe(self, batch: GroupBatch, **more: float) -> None:
        """Sets the figures of a batch, and keeps its KL for the controller."""
        figures, responses = rollout_figures(batch)
        self.batch_metrics = {**figures, **more}
        if "kl" in figures:
            self._last_kl = [figures["kl"], responses]
            self.batch_metrics["kl_coef"] = self.kl_controller.coef

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
        log_ratio = pooled_log_ratio(output.logprobs - old_logprobs, batch, options.ratio_level)
        policy_loss = self._aggregate(batch, self._surrogate(batch, output.logprobs, log_ratio))
        loss = policy_loss
        deviation = log_ratio.detach().expm1()
        high = options.clip_range_high or options.clip_range
        metrics: Metrics = {
            "policy_loss": policy_loss.detach(),
            "approx_kl": batch.token_mean(kl_estimate(old_logprobs, output.logprobs.detach(), "k3")),
            "clip_fraction": batch.token_mean(((deviation > high) | (deviation < -options.clip_range)).float()),
            "ratio_deviation": batch.token_mean(deviation.abs()),
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

    def _surrogate(self, batch: GroupBatch, logprobs: Tensor, log_ratio: Tensor) -> Tensor:
        """[R] the loss of each token."""
        options, advantages = self.config, known(batch.advantages)
        high = options.clip_range_high or options.clip_range
        if options.surrogate == "clip":
            losses = clipped_policy_loss(
                log_ratio, advantages, options.clip_range, clip_range_high=high, dual_clip=options.dual_clip
            )
        elif options.surrogate == "ratio":
            losses = -advantages * log_ratio.exp()
        elif options.surrogate == "truncated":
            losses = truncated_policy_loss(log_ratio, advantages, logprobs, 1 + high)
        else:
            losses = -advantages * logprobs
        if options.off_policy_kl:
            moved = logprobs - known(batch.logprobs)
            losses = losses * off_policy_mask(moved, advantages, batch, options.off_policy_kl)
        return losses

    def _aggregate(self, batch: GroupBatch, x: Tensor) -> Tensor:
        length = self.config.loss_length or batch.response_limit
        if not length:
            raise ValueError("loss_length = 0 needs a batch that knows its response_limit")
        return aggregate(batch, x, self.config.aggregation, length)

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        return not self.config.stop_kl or metrics["approx_kl"] <= self.config.stop_kl

    def state_dict(self) -> dict[str, Any]:
        return {
            "kl_controller": self.kl_controller.state_dict(),
            "last_kl": self._last_kl,
            "rewards": self.reward_moments.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kl_controller.load_state_dict(state["kl_controller"])
        self._last_kl = list(state["last_kl"])
        self.reward_moments.load_state_dict(state["rewards"])
