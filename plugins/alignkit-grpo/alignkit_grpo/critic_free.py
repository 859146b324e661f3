"""The base of algorithms without a critic: a baseline instead of values, and the choice of responses to train on.

Deliberately different: means are over the responses that are trained on. Responses that `truncated` or
`dynamic_sampling` drop count in no mean; other tools divide by them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from alignkit.algorithms import PolicyGradient, known
from alignkit.ops import RunningMoments, group_mean, group_std, leave_one_out_mean, moments, rewards_to_go, whiten
from alignkit_grpo.greedy import greedy_rollouts
from alignkit_grpo.options import CriticFreeOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from alignkit import Config, GroupBatch

OptionsT = TypeVar("OptionsT", bound=CriticFreeOptions)
STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, so that rewards that differ only by rounding teach nothing."""


class CriticFree(PolicyGradient[OptionsT]):
    """Policy gradient whose baseline comes from rewards."""

    Config: ClassVar[type[Config]] = CriticFreeOptions

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.earlier_rewards = RunningMoments()

    def with_advantages(self, batch: GroupBatch) -> GroupBatch:
        """The batch with token_rewards and advantages [R], without the dropped responses."""
        batch = batch.replace(response_limit=batch.response_limit or int(batch.lengths.max()))
        scores = self.shaped_scores(batch) - self._overlong(batch)
        token_rewards = self.token_rewards(batch, scores)
        if self.config.credit == "token":
            judged, returns = scores, rewards_to_go(token_rewards, batch.lengths)
        else:
            judged = batch.sum_by_response(token_rewards)
            returns = judged[batch.response_index]
        advantages = returns - self._baseline(batch, judged)[batch.response_index]
        advantages = self._normalized(batch, advantages, judged)
        batch = batch.replace(token_rewards=token_rewards, advantages=advantages)
        return self.only(batch, self._kept(batch))

    def _overlong(self, batch: GroupBatch) -> Tensor:
        """[S] the penalty of long responses: 0 up to the last share of the limit, then rising linearly."""
        share = (batch.lengths / batch.response_limit - 1) / max(self.config.overlong_share, 1e-9) + 1
        return self.config.overlong_penalty * share.clamp(0, 1)

    def _baseline(self, batch: GroupBatch, rewards: Tensor) -> Tensor:
        """[S] the baseline of each response's reward [S]."""
        kind = self.config.baseline
        if kind == "group":
            return group_mean(rewards, batch.group_index)
        if kind == "leave-one-out":
            return leave_one_out_mean(rewards, batch.group_index)
        if kind == "running":
            first = self.earlier_rewards.count == 0
            mean = float(moments(rewards)[0]) if first else self.earlier_rewards.mean
            self.earlier_rewards.update(rewards)
            return torch.full_like(rewards, mean)
        return self._greedy_rewards(batch) if kind == "greedy" else torch.zeros_like(rewards)

    def _greedy_rewards(self, batch: GroupBatch) -> Tensor:
        """[S] the reward of the likeliest response to each response's prompt, with all penalties but the KL's."""
        greedy = greedy_rollouts(self.policy, self.reward, batch)
        scores = self.shaped(known(greedy, "rewards")) - self._overlong(greedy)
        return (scores - self.config.missing_eos_penalty * ~greedy.finished)[batch.group_index]

    def _normalized(self, batch: GroupBatch, advantages: Tensor, rewards: Tensor) -> Tensor:
        """[R] the advantages [R], normalised as the options say; rewards: [S]."""
        kind = self.config.normalize_advantages
        if kind == "group":
            return advantages / (group_std(rewards, batch.group_index) + STD_EPSILON)[batch.response_index]
        if kind == "batch":
            _, variance, count = moments(rewards)
            return advantages / ((variance * count / (count - 1).clamp(min=1)).sqrt() + STD_EPSILON)
        return whiten(advantages) if kind == "tokens" else advantages

    def _kept(self, batch: GroupBatch) -> Tensor:
        """[S] which responses to train on."""
        kept = batch.finished if self.config.truncated == "drop" else torch.ones_like(batch.finished)
        if self.config.dynamic_sampling:
            kept = kept & (group_std(known(batch, "rewards"), batch.group_index) > 0)
        return kept

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "earlier_rewards": self.earlier_rewards.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.earlier_rewards.load_state_dict(state["earlier_rewards"])
