"""Passes over a batch of any size in pieces of a token budget, without gradient; results in the batch's own order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit.outputs import ScorerOutput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Policy, Scorer


def pieces_in_order(batch: GroupBatch, max_tokens: int) -> Iterator[GroupBatch]:
    """Consecutive groups of at most `max_tokens` tokens; a group over the budget stands alone."""
    cost = (batch.prompt_lengths + batch.sum_by_group(batch.lengths)).tolist()
    start, used = 0, 0
    for group, tokens in enumerate(cost):
        if group > start and used + tokens > max_tokens:
            yield batch.select(range(start, group))
            start, used = group, 0
        used += tokens
    yield batch.select(range(start, len(cost)))


def policy_logprobs(policy: Policy[Any], batch: GroupBatch, max_tokens: int) -> Tensor:
    """[R] log-probabilities of the response tokens under the policy as it is now."""
    with torch.no_grad():
        return torch.cat([policy.forward(piece).logprobs for piece in pieces_in_order(batch, max_tokens)])


def scorer_outputs(scorer: Scorer, batch: GroupBatch, max_tokens: int) -> ScorerOutput:
    """Values [R] and scores [S] under the scorer as it is now."""
    with torch.no_grad():
        parts = [scorer.forward(piece) for piece in pieces_in_order(batch, max_tokens)]
    return ScorerOutput(torch.cat([part.values for part in parts]), torch.cat([part.scores for part in parts]))
