"""DPO with a dynamic beta, arXiv:2407.08639.

beta follows the step's mean lead of chosen over rejected, relative to a running mean that already includes the step, as
in the authors' code. Deliberately different: a separate pass measures the lead over the whole step, so that all
micro-batches and processes share one beta; and no pairs are filtered out, which would need random numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.algorithms import PreferenceLoss, ResponseLogprobs, policy_logprobs
from alignkit.ops import Rankings, logistic_loss, mean_over_processes
from alignkit_dpo.options import BetaDPOOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from alignkit import GroupBatch

LOWEST = 0.01
"""Lowest share of beta: at zero or below, the loss would push nowhere, or backwards."""


class BetaDPO(PreferenceLoss[BetaDPOOptions]):
    """DPO whose beta follows how clearly the policy tells the step's pairs apart."""

    _mean_lead = 0.0
    _scale = 1.0

    def begin_step(self, batch: GroupBatch) -> None:
        """Adds the step's mean lead to the running mean, then sets beta for the step."""
        options = self.config
        responses = self.whole(batch, policy_logprobs(self.policy, batch, self.max_tokens))
        rankings = Rankings.of_batch(batch)
        leads = self.leads(responses.at(rankings.better), responses.at(rankings.worse))
        lead = float(mean_over_processes(batch.group_mean(rankings.mean_by_group(leads))))
        self._mean_lead = options.momentum * self._mean_lead + (1 - options.momentum) * lead
        self._scale = max(1 + options.beta_gain * (lead - self._mean_lead), LOWEST)
        self.batch_metrics = {**self.batch_metrics, "beta": options.beta * self._scale}

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return logistic_loss(self._scale * self.leads(chosen, rejected))

    def state_dict(self) -> dict[str, Any]:
        return {"mean_lead": self._mean_lead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._mean_lead = float(state["mean_lead"])
