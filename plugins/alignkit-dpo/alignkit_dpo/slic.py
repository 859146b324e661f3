"""Sequence likelihood calibration, arXiv:2305.10425: a hinge on the lead of the chosen response.

With the reference in the lead it is `hinge-norm` of arXiv:2309.06657; without it, the first paper's rank calibration
loss divided by its margin, 1 / beta.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit import Held
from alignkit.algorithms import PreferenceLoss, ResponseLogprobs
from alignkit_dpo.options import SLiCOptions

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import Context, Policy, RewardSource


class SLiC(PreferenceLoss[SLiCOptions]):
    """Hinge loss on pairs."""

    def __init__(
        self,
        config: SLiCOptions | None = None,
        context: Context | None = None,
        *,
        policy: Policy[Any],
        reward: RewardSource[Any] | None = None,
    ) -> None:
        self.uses_reference = config is None or config.normalized
        super().__init__(config, context, policy=policy, reward=reward)

    @classmethod
    def holds(cls, config: SLiCOptions) -> tuple[Held, ...]:
        return super().holds(config) if config.normalized else (Held(name="policy", trained=True),)

    def implicit_rewards(self, responses: ResponseLogprobs) -> Tensor:
        return super().implicit_rewards(responses) if self.uses_reference else self.config.beta * responses.logprobs

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return (1 - self.leads(chosen, rejected)).relu()
