"""Losses on a whole ranking of K responses, without splitting it into pairs.

List DPO: arXiv:2305.18290, appendix A.3. EXO: arXiv:2402.00856. NCA: arXiv:2402.05369. Deliberately different: EXO and
NCA take their target distribution from the ranks, all on the best, where the papers use a reward model; for K = 2 both
are the papers' own losses on pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.algorithms import RankingLoss, ResponseLogprobs
from alignkit.ops import nca, plackett_luce, reverse_kl_to_best
from alignkit_dpo.options import EXOOptions, ListDPOOptions, NCAOptions

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.ops import Rankings


class ListDPO(RankingLoss[ListDPOOptions]):
    """DPO under Plackett-Luce."""

    def group_losses(self, responses: ResponseLogprobs, rankings: Rankings) -> Tensor:
        return plackett_luce(self.implicit_rewards(responses), rankings)


class EXO(RankingLoss[EXOOptions]):
    """Efficient exact optimisation."""

    def group_losses(self, responses: ResponseLogprobs, rankings: Rankings) -> Tensor:
        return reverse_kl_to_best(self.implicit_rewards(responses), rankings, self.config.label_smoothing)


class NCA(RankingLoss[NCAOptions]):
    """Noise contrastive alignment."""

    def group_losses(self, responses: ResponseLogprobs, rankings: Rankings) -> Tensor:
        return nca(self.implicit_rewards(responses), rankings)
