"""Direct preference optimisation and the variants that differ in one term.

DPO, arXiv:2305.18290, eq. 7: Bradley-Terry on beta * log(policy / reference). Label smoothing is the authors'
conservative variant, robust DPO (arXiv:2403.00409) its unbiased counterpart. DPO-positive (arXiv:2402.13228) keeps up
the chosen response's probability, R-DPO (arXiv:2403.19159) takes length out of the reward. Deliberately different:
rankings of any K (see `alignkit.algorithms`), and divergences other than the reverse KL (arXiv:2309.16240).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.algorithms import PreferenceLoss, ResponseLogprobs
from alignkit.ops import logistic_loss
from alignkit_dpo.options import DPOOptions, DPOPOptions, RDPOOptions, RobustDPOOptions

if TYPE_CHECKING:
    from torch import Tensor


class DPO(PreferenceLoss[DPOOptions]):
    """Direct preference optimisation."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return logistic_loss(self.leads(chosen, rejected), self.config.label_smoothing)


class RobustDPO(PreferenceLoss[RobustDPOOptions]):
    """DPO whose expected loss under flipped preferences equals the loss under the true ones."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        leads, flipped = self.leads(chosen, rejected), self.config.label_smoothing
        return ((1 - flipped) * logistic_loss(leads) - flipped * logistic_loss(-leads)) / (1 - 2 * flipped)


class DPOP(PreferenceLoss[DPOPOptions]):
    """DPO-positive."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        lost = (-self.implicit_rewards(chosen)).relu()
        return logistic_loss(self.leads(chosen, rejected) - self.config.penalty * lost)


class RDPO(PreferenceLoss[RDPOOptions]):
    """Length-regularised DPO."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        longer = chosen.lengths - rejected.lengths
        return logistic_loss(self.leads(chosen, rejected) + self.config.length_weight * longer)
