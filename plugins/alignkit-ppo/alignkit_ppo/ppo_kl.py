"""PPO with an adaptive KL penalty, Schulman et al., arXiv:1707.06347, section 4: instead of a clip, the loss has the KL
from the sampling policy. Its coefficient doubles or halves after each batch, to hold that KL near a target.

Different from the paper: the KL of an update is measured in its last step, before AdamW moves the weights. A batch
needs several steps: with one, the measured KL is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.algorithms import known
from alignkit.ops import TargetKL, kl_estimate
from alignkit_ppo.actor_critic import ActorCritic
from alignkit_ppo.options import PPOKLOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from alignkit import GroupBatch, Metrics, PolicyOutput


class PPOKL(ActorCritic[PPOKLOptions]):
    """Policy gradient with a critic, and a penalty on each update's KL."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.penalty = TargetKL(self.config.penalty_coef, self.config.penalty_target)
        self._update_kl: float | None = None

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        if self._update_kl is not None:
            self.penalty.update(self._update_kl, batch.num_responses)
        prepared = super().prepare(batch)
        self.batch_metrics["penalty_coef"] = self.penalty.coef
        return prepared

    def surrogate(self, batch: GroupBatch, logprobs: Tensor, log_ratio: Tensor) -> Tensor:
        return -known(batch, "advantages") * log_ratio.exp()

    def policy_loss(self, batch: GroupBatch, output: PolicyOutput) -> tuple[Tensor, Metrics]:
        loss, metrics = super().policy_loss(batch, output)
        penalty = batch.token_mean(kl_estimate(known(batch, "logprobs"), output.logprobs, "k3"))
        return loss + self.penalty.coef * penalty, metrics

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        self._update_kl = None if self.warms_up else metrics["approx_kl"]
        return super().keep_going(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "penalty": self.penalty.state_dict(), "update_kl": self._update_kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.penalty.load_state_dict(state["penalty"])
        self._update_kl = state["update_kl"]
