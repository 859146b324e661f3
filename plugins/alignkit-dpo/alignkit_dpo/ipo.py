"""Squared losses. IPO, arXiv:2310.12036, eq. 17, pulls the gap to 1 / (2 beta); SPPO, arXiv:2405.00675, each response.

IPO's log-ratios are means over a response's tokens, as in the authors' experiments and in TRL; the paper writes sums.
SPPO's probabilities of winning are 1 and 0, as in TRL; the paper takes them from a preference model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.algorithms import PreferenceLoss, ResponseLogprobs
from alignkit_dpo.options import IPOOptions, SPPOOptions

if TYPE_CHECKING:
    from torch import Tensor


class IPO(PreferenceLoss[IPOOptions]):
    """Identity preference optimisation."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        better, worse = self.implicit_rewards(chosen), self.implicit_rewards(rejected)
        gaps = (better / chosen.lengths - worse / rejected.lengths) / self.config.beta
        return (gaps - 1 / (2 * self.config.beta)).square()


class SPPO(PreferenceLoss[SPPOOptions]):
    """Self-play preference optimisation with certain wins."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        target = 1 / (2 * self.config.beta)
        return (chosen.logratios - target).square() + (rejected.logratios + target).square()
