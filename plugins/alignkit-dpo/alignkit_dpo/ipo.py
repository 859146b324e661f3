"""Identity preference optimisation, arXiv:2310.12036, eq. 17: a squared loss that pulls the gap to 1 / (2 beta).

The log-ratios are means over a response's tokens, as in the authors' own experiments and in TRL; the paper writes sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from alignkit_dpo.base import PreferenceLoss, ResponseLogprobs
from alignkit_dpo.options import IPOOptions

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.options import Config


class IPO(PreferenceLoss[IPOOptions]):
    """Identity preference optimisation."""

    Config: ClassVar[type[Config]] = IPOOptions

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        gaps = chosen.logratios / chosen.lengths - rejected.logratios / rejected.lengths
        return (gaps - 1 / (2 * self.config.beta)).square()
