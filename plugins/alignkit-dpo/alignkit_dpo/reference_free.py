"""Losses on pairs that need no reference: CPO (arXiv:2401.08417), SimPO (arXiv:2405.14734), ORPO (arXiv:2403.07691).

Deliberately different: the likelihood that CPO and ORPO add covers the response only, never the prompt, and is a mean
over its tokens, then over prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.algorithms import PreferenceLoss, ResponseLogprobs
from alignkit.ops import log_odds, logistic_loss
from alignkit_dpo.options import CPOOptions, ORPOOptions, SimPOOptions

if TYPE_CHECKING:
    from torch import Tensor


class CPO(PreferenceLoss[CPOOptions]):
    """Contrastive preference optimisation."""

    uses_reference = False

    def implicit_rewards(self, responses: ResponseLogprobs) -> Tensor:
        return self.config.beta * responses.logprobs

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return logistic_loss(self.leads(chosen, rejected))


class SimPO(PreferenceLoss[SimPOOptions]):
    """Simple preference optimisation."""

    uses_reference = False

    def implicit_rewards(self, responses: ResponseLogprobs) -> Tensor:
        return self.config.beta * responses.mean_logprobs

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return logistic_loss(self.leads(chosen, rejected) - self.config.margin)


class ORPO(PreferenceLoss[ORPOOptions]):
    """Odds ratio preference optimisation."""

    uses_reference = False

    def implicit_rewards(self, responses: ResponseLogprobs) -> Tensor:
        return log_odds(responses.mean_logprobs)

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return self.config.beta * logistic_loss(self.leads(chosen, rejected))
