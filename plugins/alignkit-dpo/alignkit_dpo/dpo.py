"""Direct preference optimisation, arXiv:2305.18290, eq. 7: Bradley-Terry on beta * log(policy / reference).

Label smoothing is the authors' conservative variant. Different on purpose: rankings of any K (see `base`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from alignkit.ops.ranking_losses import logistic_loss
from alignkit_dpo.base import PreferenceLoss, ResponseLogprobs
from alignkit_dpo.options import DPOOptions

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.options import Config


class DPO(PreferenceLoss[DPOOptions]):
    """Direct preference optimisation."""

    Config: ClassVar[type[Config]] = DPOOptions

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        gaps = self.implicit_rewards(chosen) - self.implicit_rewards(rejected)
        return logistic_loss(gaps, self.config.label_smoothing)
