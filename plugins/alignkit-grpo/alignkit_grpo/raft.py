"""RAFT, Dong et al., arXiv:2304.06767: sample, rank by the reward, fine-tune on the best, repeat.

As a policy gradient: the winners have an advantage of 1, all others are dropped. So the KL to a reference counts in the
ranking, as in the paper's regularised reward, and RAFT has everything that online algorithms share. Deliberately
different: with a threshold (rejection sampling, arXiv:2308.01825) duplicates are kept, so that a response counts as
often as it was sampled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignkit.algorithms import PolicyGradient, known
from alignkit.ops import highest_of_groups
from alignkit_grpo.options import RAFTOptions

if TYPE_CHECKING:
    from alignkit import GroupBatch


class RAFT(PolicyGradient[RAFTOptions]):
    """Imitates the best of n. The weight of a winner can't tell whether it would have won among other responses."""

    weighs_rollouts = False

    def with_advantages(self, batch: GroupBatch) -> GroupBatch:
        """The winners, each token with an advantage of 1."""
        token_rewards = self.token_rewards(batch, self.shaped_scores(batch))
        won = highest_of_groups(batch.sum_by_response(token_rewards), batch.group_index, self.config.winners)
        if self.config.threshold is not None:
            won = won & (known(batch, "rewards") >= self.config.threshold)
        return self.only(batch.replace(token_rewards=token_rewards, advantages=torch.ones_like(token_rewards)), won)
