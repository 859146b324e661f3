"""Online DPO, Guo et al., arXiv:2402.04792: DPO on the policy's own rollouts, ranked by a reward source.

The loss is DPO's, on fresh pairs. Deliberately different: a prompt may have more than two responses, compared as best
against worst or in all pairs; prompts without two different scores are dropped and count in no mean; beta may follow
the measured KL, like kl_coef of a policy gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignkit.algorithms import HeldAlgorithm
from alignkit.ops import (
    derivative,
    highest_of_groups,
    process_index,
    ranks_of_scores,
    sum_over_processes,
    with_ordered_pairs,
)
from alignkit_dpo.dpo import DPO
from alignkit_dpo.options import OnlineDPOOptions

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import GroupBatch, Metrics
    from alignkit.algorithms import ResponseLogprobs
    from alignkit.ops import Rankings


class OnlineDPO(HeldAlgorithm[OnlineDPOOptions], DPO):
    """DPO on ranked rollouts."""

    kl_weight_name = "beta"

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """The responses to compare, with their ranks and the reference's log-probabilities.

        Raises:
            ValueError: the batch has no rewards.
        """
        batch = super().prepare(batch)
        self.observe(batch)
        return self._compared(batch)

    def _compared(self, batch: GroupBatch) -> GroupBatch:
        """The responses to compare, with ranks. If no process has any, those of the very first prompt, all tied, so
        that there is always a step to take."""
        assert batch.rewards is not None
        scores = batch.rewards - self.config.missing_eos_penalty * ~batch.finished
        ranked = batch.replace(ranks=ranks_of_scores(scores, batch.group_index, batch.num_groups))
        if self.config.pairs == "best-worst":
            best, worst = (highest_of_groups(sign * scores, batch.group_index) for sign in (1, -1))
            ranked = ranked.select_responses(best | worst)
        compared = with_ordered_pairs(ranked)
        if int(sum_over_processes(torch.tensor(compared.num_groups, device=batch.device))):
            return compared
        return ranked.replace(ranks=torch.zeros_like(ranked.group_index)).select([0] if process_index() == 0 else [])

    def implicit_rewards(self, responses: ResponseLogprobs) -> Tensor:
        return self.kl_controller.coef * derivative(responses.logratios, *self.config.divergence)

    def _metrics(self, batch: GroupBatch, rankings: Rankings, responses: ResponseLogprobs) -> Metrics:
        metrics = super()._metrics(batch, rankings, responses)
        del metrics["reference_kl"]  # it is for responses sampled from the reference; these are the policy's
        return metrics
