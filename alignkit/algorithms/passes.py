"""Passes without gradient over a batch of any size, split by a token budget; results keep the batch's order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import InputError
from alignkit.interfaces import HasValues
from alignkit.outputs import ScorerOutput

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Policy, Scorer


def policy_logprobs(policy: Policy[Any], batch: GroupBatch, max_tokens: int) -> Tensor:
    """[R] log-probabilities of the response tokens under the current policy."""
    with torch.no_grad():
        return torch.cat([policy.forward(piece).logprobs for piece in batch.pieces(max_tokens)])


def scorer_outputs(scorer: Scorer, batch: GroupBatch, max_tokens: int) -> ScorerOutput:
    """Values [R] and scores [S] under the current scorer."""
    with torch.no_grad():
        parts = [scorer.forward(piece) for piece in batch.pieces(max_tokens)]
    return ScorerOutput(torch.cat([part.values for part in parts]), torch.cat([part.scores for part in parts]))


def require_values(policy: Policy[Any]) -> HasValues:
    """The policy, typed as one with value heads and scorers. Raises InputError if it has none."""
    if not isinstance(policy, HasValues):
        raise InputError(
            f"{type(policy).__name__} has no value heads or scorers",
            fix="choose an algorithm without a critic, or another policy",
        )
    return policy
