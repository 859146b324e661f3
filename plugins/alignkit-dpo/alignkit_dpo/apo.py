"""Anchored preference optimisation, arXiv:2408.06266: each response is compared with the reference as well.

`apo-zero` (eq. 7) raises the chosen and lowers the rejected response; `apo-down` (eq. 8) lowers both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.algorithms import PreferenceLoss, ResponseLogprobs
from alignkit_dpo.options import APODownOptions, APOZeroOptions

if TYPE_CHECKING:
    from torch import Tensor


class APOZero(PreferenceLoss[APOZeroOptions]):
    """Chosen up, rejected down."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return (-self.implicit_rewards(chosen)).sigmoid() + self.implicit_rewards(rejected).sigmoid()


class APODown(PreferenceLoss[APODownOptions]):
    """Both down, rejected further."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return self.implicit_rewards(chosen).sigmoid() + (-self.leads(chosen, rejected)).sigmoid()
