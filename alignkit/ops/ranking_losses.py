"""Losses on rankings of any K, vectorised over groups of different sizes.

Bradley-Terry over pairs: arXiv:2203.02155 (InstructGPT), eq. 1; its margin: arXiv:2307.09288, eq. 2; its centring:
arXiv:2312.09244, eq. 2. InfoNCE: arXiv:1807.03748. Plackett-Luce: Plackett 1975, J. R. Stat. Soc. C 24(2).

Deliberate choices:
 - Pairs are averaged within a group, then over groups, as in InstructGPT: a prompt counts once whatever its K. If all
   rankings have the same K and no ties (pairs, for instance), this equals the mean over all pairs.
 - Tied responses are not compared. A group without an ordered pair has loss 0; `with_ordered_pairs` drops it before
   training, so that it does not dilute the mean.
 - InfoNCE with several best: the mean over them, each against the responses ranked strictly lower.
 - Plackett-Luce with ties: Efron's approximation (1977, J. Am. Stat. Assoc. 72, 557-565) to the sum over all orders of
   the tied responses, times the number d! of these orders, so that a perfect fit has loss 0. For the last rank that sum
   is exactly 1 and adds no factor: a partial ranking puts all its unranked responses there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.batch import GroupBatch


@dataclass(frozen=True)
class Rankings:
    """Who beats whom: S responses in G groups, Q strictly ordered pairs.

    Attributes:
        group_index: [S] the group of each response, ascending.
        left, right: [all pairs] response indices of every ordered couple within a group, (s, s) included.
        better, worse: [Q] response indices; `better` has the lower rank.
        tied: [all pairs] bool, whether left and right share a rank.
        num_groups: G.
    """

    group_index: Tensor
    left: Tensor
    right: Tensor
    better: Tensor
    worse: Tensor
    tied: Tensor
    num_groups: int

    @classmethod
    def of(cls, group_index: Tensor, ranks: Tensor, num_groups: int) -> Rankings:
        """The pairs of ranks [S] (0 is best, ties share a rank) in groups [S], ascending."""
        sizes = torch.bincount(group_index, minlength=num_groups)
        starts = sizes.cumsum(0) - sizes
        partners = sizes[group_index]
        left = torch.repeat_interleave(torch.arange(len(ranks), device=ranks.device), partners)
        first = torch.repeat_interleave(partners.cumsum(0) - partners, partners)
        right = starts[group_index[left]] + torch.arange(len(left), device=ranks.device) - first
        ordered = ranks[left] < ranks[right]
        return cls(group_index, left, right, left[ordered], right[ordered], ranks[left] == ranks[right], num_groups)

    @classmethod
    def of_batch(cls, batch: GroupBatch) -> Rankings:
        """The pairs of a batch. Raises ValueError if it has no ranks."""
        if batch.ranks is None:
            raise ValueError("a ranking loss needs ranks, and some groups have none")
        return cls.of(batch.group_index, batch.ranks, batch.num_groups)

    @property
    def pairs_per_group(self) -> Tensor:
        """[G] strictly ordered pairs of each group."""
        return torch.bincount(self.group_index[self.better], minlength=self.num_groups)

    def mean_by_group(self, of_pairs: Tensor) -> Tensor:
        """[Q] -> [G]: the mean over each group's pairs, 0 if it has none."""
        return _sum_by(of_pairs, self.group_index[self.better], self.num_groups) / self.pairs_per_group.clamp(min=1)

    @property
    def beaten(self) -> Tensor:
        """[S] bool: whether a response of the group is better; False for the best."""
        return torch.zeros_like(self.group_index, dtype=torch.bool).index_fill(0, self.worse, True)

    def mean_over_best(self, of_responses: Tensor) -> Tensor:
        """[S] -> [G]: the mean over each group's best responses."""
        return _mean_where(~self.beaten, of_responses, self)


def ranks_of_scores(scores: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
    """[S] -> [S]: how many responses of the group score strictly higher: 0 is best, equal scores share a rank."""
    return torch.bincount(Rankings.of(group_index, -scores, num_groups).worse, minlength=len(scores))


def with_ordered_pairs(batch: GroupBatch) -> GroupBatch:
    """Drops groups that order no two different responses; cutting at a length limit can make two the same."""
    rankings = Rankings.of_batch(batch)
    known: dict[tuple[int, ...], int] = {}
    tokens = torch.split(batch.response_ids, batch.lengths.tolist())
    content = torch.tensor([known.setdefault(tuple(ids.tolist()), len(known)) for ids in tokens], device=batch.device)
    different = (content[rankings.better] != content[rankings.worse]).long()
    usable = rankings.mean_by_group(different) > 0
    return batch if bool(usable.all()) else batch.select(usable.nonzero()[:, 0].tolist())


def pair_accuracy(scores: Tensor, rankings: Rankings) -> Tensor:
    """[S] -> [G]: share of each group's pairs that the scores order correctly; equal scores count one half."""
    gaps = scores[rankings.better] - scores[rankings.worse]
    return rankings.mean_by_group((gaps.sign() + 1) / 2)


def logistic_loss(gaps: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """[Q] -> [Q]: -log sigmoid(gap), with the label flipped with probability `label_smoothing` (0 to 0.5).

    Source: Bradley and Terry 1952; the smoothing: the conservative DPO of arXiv:2305.18290's authors.
    """
    return -(1 - label_smoothing) * logsigmoid(gaps) - label_smoothing * logsigmoid(-gaps)


def bradley_terry(
    scores: Tensor,
    rankings: Rankings,
    *,
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
    center_coef: float = 0.0,
) -> Tensor:
    """[S] -> [G]: each group's mean over its pairs of -log sigmoid(better - worse - margin).

    Args:
        scores: [S] the reward model's.
        margins: [Q] by how much the better response should lead.
        label_smoothing: probability that an annotator's order is flipped, 0 to 0.5.
        center_coef: coefficient of the mean of (better + worse)^2, which holds scores around zero.
    """
    better, worse = scores[rankings.better], scores[rankings.worse]
    gaps = better - worse if margins is None else better - worse - margins
    return rankings.mean_by_group(logistic_loss(gaps, label_smoothing) + center_coef * (better + worse).square())


def infonce(scores: Tensor, rankings: Rankings, *, temperature: float = 1.0) -> Tensor:
    """[S] -> [G]: -log of the softmax probability (of scores / temperature) of the best against the rest.

    Equals Bradley-Terry for K = 2 and temperature 1. Several best: see the module docstring.
    """
    logits = scores / temperature
    return rankings.mean_over_best(-logsigmoid(logits - _logsumexp_of_worse(logits, rankings)))


def plackett_luce(scores: Tensor, rankings: Rankings) -> Tensor:
    """[S] -> [G]: -log probability of each group's ranking, full, partial or tied. For K = 2 it is Bradley-Terry.

    A response among d tied ones, with m of them before it, has the factor exp(s) / (mean over the tied of exp(s) + sum
    over the worse of exp(s) / (d - m)): the order within a tie does not matter. See the module docstring.
    """
    left, right = rankings.left[rankings.tied], rankings.right[rankings.tied]
    tied = _sum_by(torch.ones_like(scores[left]), left, len(scores))
    before = _sum_by((right < left).to(scores.dtype), left, len(scores))
    mean_tied = _logsumexp_by(scores[right], left, len(scores)) - tied.log()
    worse = _logsumexp_of_worse(scores, rankings)
    last = worse.isneginf()
    stages = torch.logaddexp(mean_tied, worse.masked_fill(last, 0) - (tied - before).log()) - scores
    return _sum_by(stages.masked_fill(last, 0), rankings.group_index, rankings.num_groups)


def reverse_kl_to_best(scores: Tensor, rankings: Rankings, label_smoothing: float) -> Tensor:
    """[S] -> [G]: KL(q || p), where q is the softmax of a group's scores, and p shares 1 - label_smoothing equally
    among the best and label_smoothing (above 0, below 1) equally among the others.

    Source: arXiv:2402.00856, eq. 16, for one best and one other.
    """
    index, beaten = rankings.group_index, rankings.beaten
    log_q = scores - _logsumexp_by(scores, index, rankings.num_groups)[index]
    others = _sum_by(beaten.to(scores.dtype), index, rankings.num_groups)[index]
    best = _sum_by((~beaten).to(scores.dtype), index, rankings.num_groups)[index]
    log_p = torch.where(beaten, math.log(label_smoothing) - others.log(), math.log1p(-label_smoothing) - best.log())
    return _sum_by(log_q.exp() * (log_q - log_p), index, rankings.num_groups)


def nca(scores: Tensor, rankings: Rankings) -> Tensor:
    """[S] -> [G]: -log sigmoid(score) of the best, less the mean over all of log sigmoid(-score).

    Source: arXiv:2402.05369, the NCA loss with all weight on the best; several best share the weight.
    """
    everyone = torch.ones_like(rankings.beaten)
    return -rankings.mean_over_best(logsigmoid(scores)) - _mean_where(everyone, logsigmoid(-scores), rankings)


def log_odds(logprobs: Tensor) -> Tensor:
    """[S] -> [S]: log(p / (1 - p)) of p = exp(logprobs), clamped just below 1 so that the odds stay finite."""
    held = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return held - (-held.expm1()).log()


def _mean_where(chosen: Tensor, x: Tensor, rankings: Rankings) -> Tensor:
    """[S] -> [G]: each group's mean over the responses where `chosen` [S] is True."""
    total = _sum_by(x.masked_fill(~chosen, 0), rankings.group_index, rankings.num_groups)
    return total / _sum_by(chosen.to(x.dtype), rankings.group_index, rankings.num_groups)


def _sum_by(x: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=x.dtype, device=x.device).index_add(0, index, x)


def _logsumexp_by(x: Tensor, index: Tensor, size: int) -> Tensor:
    """[size] log of the sum of exp(x) at each index, minus infinity if there is none."""
    top = x.new_full((size,), -torch.inf).scatter_reduce(0, index, x.detach(), "amax")
    return _sum_by((x - top[index]).exp(), index, size).log() + top


def _logsumexp_of_worse(scores: Tensor, rankings: Rankings) -> Tensor:
    """[S] -> [S]: over the responses that each one beats, minus infinity if it beats none."""
    return _logsumexp_by(scores[rankings.worse], rankings.better, len(scores))
