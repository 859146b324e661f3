"""Passes without gradient over a batch of any size, split by a token budget; results keep the batch's order."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alignkit.errors import InputError
from alignkit.interfaces import HasValues, Policy, Scorer
from alignkit.ops.memory import until_it_fits
from alignkit.outputs import ScorerOutput

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from alignkit.batch import GroupBatch

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


def each_piece(compute: Callable[[GroupBatch], ResultT], batch: GroupBatch, max_tokens: int) -> list[ResultT]:
    """`compute` of each piece of at most `max_tokens` tokens, without gradient; of smaller ones if memory runs out."""

    def computed(budget: int) -> list[ResultT]:
        with torch.no_grad():
            return [compute(piece) for piece in batch.pieces(budget)]

    return until_it_fits(computed, max_tokens, partial(logger.warning, "out of memory: now %d tokens at a time"))


def policy_logprobs(policy: Policy[Any], batch: GroupBatch, max_tokens: int) -> Tensor:
    """[R] log-probabilities of the response tokens under the current policy."""
    return torch.cat(each_piece(lambda piece: policy.forward(piece).logprobs, batch, max_tokens))


def scorer_outputs(scorer: Scorer, batch: GroupBatch, max_tokens: int) -> ScorerOutput:
    """Values [R] and scores [S] under the current scorer."""
    parts = each_piece(scorer.forward, batch, max_tokens)
    return ScorerOutput(torch.cat([part.values for part in parts]), torch.cat([part.scores for part in parts]))


def require_values(policy: Policy[Any]) -> HasValues:
    """The policy, typed as one with value heads and scorers. Raises InputError if it has none."""
    if not isinstance(policy, HasValues):
        raise InputError(
            f"{type(policy).__name__} has no value heads or scorers",
            fix="choose an algorithm without a critic, or another policy",
        )
    return policy
