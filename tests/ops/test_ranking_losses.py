"""Ranking losses against arithmetic by hand, brute force over orders, and the identities that tie them together."""

from __future__ import annotations

import math
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
import torch

from alignkit import Group, GroupBatch, Prompt
from alignkit.ops.ranking_losses import (
    Rankings,
    bradley_terry,
    infonce,
    logistic_loss,
    pair_accuracy,
    plackett_luce,
    reverse_kl_to_best,
    with_ordered_pairs,
)
from alignkit.testing import ELEMENTARY, assert_near

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

LOSSES = [bradley_terry, infonce, plackett_luce]
E = math.e


def rankings(*ranks: Sequence[int]) -> Rankings:
    index = [g for g, row in enumerate(ranks) for _ in row]
    return Rankings.of(torch.tensor(index), torch.tensor([r for row in ranks for r in row]), len(ranks))


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def close(actual: Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_pairs_of_groups_of_different_sizes() -> None:
    found = rankings([1, 0], [0, 1, 1], [0], [2, 2])
    assert list(zip(found.better.tolist(), found.worse.tolist(), strict=True)) == [(1, 0), (2, 3), (2, 4)]
    assert found.pairs_per_group.tolist() == [1, 2, 0, 0]
    close(found.mean_by_group(torch.tensor([5.0, 1.0, 2.0], dtype=torch.float64)), 5.0, 1.5, 0.0, 0.0)


def test_bradley_terry_by_hand() -> None:
    # Gaps of the pairs (0,1), (0,2), (1,2): 1, 3, 2. -log sigmoid(x) = log(1 + e^-x).
    expected = (math.log(1 + E**-1) + math.log(1 + E**-3) + math.log(1 + E**-2)) / 3
    assert expected == pytest.approx(0.162926, abs=1e-6)
    close(bradley_terry(scores(3.0, 2.0, 0.0), rankings([0, 1, 2])), expected)
    # The order reversed: gaps -1, -3, -2.
    reverse = (math.log(1 + E) + math.log(1 + E**3) + math.log(1 + E**2)) / 3
    close(bradley_terry(scores(3.0, 2.0, 0.0), rankings([2, 1, 0])), reverse)


def test_bradley_terry_margin_smoothing_and_centring_by_hand() -> None:
    one, pair = scores(2.0, 0.5), rankings([0, 1])
    close(bradley_terry(one, pair, margins=torch.tensor([0.5])), math.log(1 + E**-1.0))  # 2 - 0.5 - 0.5 = 1
    smoothed = 0.9 * math.log(1 + E**-1.5) + 0.1 * math.log(1 + E**1.5)
    close(bradley_terry(one, pair, label_smoothing=0.1), smoothed)
    close(bradley_terry(one, pair, center_coef=0.01), math.log(1 + E**-1.5) + 0.01 * 2.5**2)


def test_group_means_weigh_prompts_equally() -> None:
    losses = bradley_terry(scores(1.0, 0.0, 3.0, 2.0, 0.0), rankings([0, 1], [0, 1, 2]))
    three = (math.log(1 + E**-1) + math.log(1 + E**-3) + math.log(1 + E**-2)) / 3
    close(losses, math.log(1 + E**-1), three)


def test_infonce_by_hand() -> None:
    # The best has 2 against 1 and 0: log(e^2 + e + 1) - 2 = log(1 + 1/e + 1/e^2).
    close(infonce(scores(1.0, 2.0, 0.0), rankings([1, 0, 2])), math.log(1 + E**-1 + E**-2))
    # Temperature 1/2 doubles the gaps.
    close(infonce(scores(1.0, 2.0, 0.0), rankings([1, 0, 2]), temperature=0.5), math.log(1 + E**-2 + E**-4))
    # Two best, 2 and 1, each against the third alone: the mean of log(1 + e^-2) and log(1 + e^-1).
    tied = (math.log(1 + E**-2) + math.log(1 + E**-1)) / 2
    close(infonce(scores(2.0, 1.0, 0.0), rankings([0, 0, 1])), tied)
    # Who stands second does not matter.
    close(infonce(scores(1.0, 2.0, 0.0), rankings([2, 0, 1])), math.log(1 + E**-1 + E**-2))


def test_reverse_kl_to_several_best_by_hand() -> None:
    # Two share the best place of four: the target is 0.45, 0.45, 0.05 and 0.05.
    values = [0.5, -1.0, 2.0, 0.0]
    total = sum(math.exp(value) for value in values)
    q = [math.exp(value) / total for value in values]
    expected = sum(p * math.log(p / target) for p, target in zip(q, [0.45, 0.05, 0.45, 0.05], strict=True))
    close(reverse_kl_to_best(scores(*values), rankings([0, 1, 0, 1]), 0.1), expected)


def test_plackett_luce_by_hand() -> None:
    # First stage 2 of {2, 1, 0}, second stage 1 of {1, 0}, third stage certain.
    full = math.log(1 + E**-1 + E**-2) + math.log(1 + E**-1)
    close(plackett_luce(scores(2.0, 1.0, 0.0), rankings([0, 1, 2])), full)
    # Partial: only the best is known, the others share the last rank: the first stage alone.
    close(plackett_luce(scores(2.0, 1.0, 0.0), rankings([0, 1, 1])), math.log(1 + E**-1 + E**-2))
    # Tied best with scores 2 and 1 (mean of exp (e^2 + e)/2) over one worse with exp 1, which enters by 1/2 and by 1.
    mean = (E**2 + E) / 2
    tied = math.log(mean + 1 / 2) - 2 + math.log(mean + 1) - 1
    close(plackett_luce(scores(2.0, 1.0, 0.0), rankings([0, 0, 1])), tied)


def test_plackett_luce_full_rankings_sum_to_one() -> None:
    values = (0.3, -1.2, 0.9, 0.1)
    total = sum((-plackett_luce(scores(*values), rankings(order))).exp().item() for order in permutations(range(4)))
    assert total == pytest.approx(1.0, abs=1e-12)


def chance_of_order(values: Sequence[float]) -> float:
    """Probability under Plackett-Luce that the responses come out in the order given, worked out stage by stage."""
    chance = 1.0
    for stage in range(len(values)):
        chance *= math.exp(values[stage]) / sum(math.exp(value) for value in values[stage:])
    return chance


def test_plackett_luce_ties_are_exact_for_equal_scores() -> None:
    # Two tied, then one, then three unranked: the sum over all orders that agree with the ranking.
    values, ranks = (0.7, 0.7, -0.2, 0.4, -1.0, 0.4), (0, 0, 1, 2, 2, 2)
    chance = sum(
        chance_of_order([values[i] for i in (*top, 2, *rest)])
        for top in permutations((0, 1))
        for rest in permutations((3, 4, 5))
    )
    close(plackett_luce(scores(*values), rankings(ranks)), -math.log(chance))


def test_plackett_luce_ties_are_near_the_exact_sum_otherwise() -> None:
    values = (0.7, 0.3, -0.2)
    chance = chance_of_order((0.7, 0.3, -0.2)) + chance_of_order((0.3, 0.7, -0.2))
    assert plackett_luce(scores(*values), rankings([0, 0, 1])).item() == pytest.approx(-math.log(chance), abs=0.02)


def test_plackett_luce_perfect_fit_of_a_tie_costs_nothing() -> None:
    close(plackett_luce(scores(500.0, 500.0, 0.0), rankings([0, 0, 1])), 0.0)


@pytest.mark.parametrize("loss", [infonce, plackett_luce])
def test_two_responses_equal_bradley_terry(loss: Callable[..., Tensor]) -> None:
    ours, theirs = scores(0.3, -0.8, 1.1, 2.0), scores(0.3, -0.8, 1.1, 2.0)
    pairs = rankings([0, 1], [1, 0])
    assert_near(loss(ours, pairs), bradley_terry(theirs, pairs), terms=2 * ELEMENTARY)
    loss(ours, pairs).sum().backward()
    bradley_terry(theirs, pairs).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert_near(ours.grad, theirs.grad, terms=3 * ELEMENTARY)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_and_direction(loss: Callable[..., Tensor]) -> None:
    values, mixed = scores(0.3, -0.8, 1.1, 2.0, 0.4, 0.0, 0.2, -0.3), rankings([0, 0, 1, 2], [1, 0], [0, 0])
    assert torch.autograd.gradcheck(lambda x: loss(x, mixed), (values,))
    (gradient,) = torch.autograd.grad(loss(values, mixed).sum(), values)
    assert (gradient[:2] < 0).all() and gradient[3] > 0, "descent must raise the best and lower the worst"
    assert gradient[5] < 0 < gradient[4]
    assert gradient[6:].abs().sum() == 0, "a group of ties has nothing to say"


@pytest.mark.parametrize("loss", LOSSES)
def test_groups_do_not_mix(loss: Callable[..., Tensor]) -> None:
    values, ranks = (0.3, -0.8, 1.1, 2.0, 0.4, 0.0, 1.0), ([0, 1, 1], [1, 0, 2, 0])
    together = loss(scores(*values), rankings(*ranks))
    apart = [loss(scores(*values[:3]), rankings(ranks[0])), loss(scores(*values[3:]), rankings(ranks[1]))]
    assert_near(together, torch.cat(apart), terms=2 * ELEMENTARY + 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_responses_and_shift_of_scores_do_not_matter(loss: Callable[..., Tensor]) -> None:
    values, ranks = (0.3, -0.8, 1.1, 2.0), (0, 0, 1, 2)
    expected = loss(scores(*values), rankings(ranks))
    for order in permutations(range(4)):
        moved = loss(scores(*(values[i] + 5 for i in order)), rankings([ranks[i] for i in order]))
        torch.testing.assert_close(moved, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_scores_stay_finite(loss: Callable[..., Tensor]) -> None:
    values = torch.tensor([0.0, 1e4, -1e4, 3.0, 3.0], requires_grad=True)
    result = loss(values, rankings([0, 1, 2], [0, 0]))
    result.sum().backward()
    assert result.isfinite().all() and values.grad is not None and values.grad.isfinite().all()
    assert result[1] == 0


def test_accuracy_counts_ordered_pairs_and_halves_equal_scores() -> None:
    values = scores(3.0, 2.0, 2.0, 0.0, 1.0)
    # First group: pairs (0,1) and (0,2) right; the tied two give none. Second: its only pair is wrong.
    close(pair_accuracy(values, rankings([0, 1, 1], [0, 1])), 1.0, 0.0)
    # (0,1) right, (0,2) right, (1,2) equal: 2.5 of 3.
    close(pair_accuracy(values[:3], rankings([0, 1, 2])), 2.5 / 3)


def test_logistic_loss_at_half_smoothing_is_symmetric() -> None:
    gaps = scores(-1.3, 0.4)
    torch.testing.assert_close(logistic_loss(gaps, 0.5), logistic_loss(-gaps, 0.5), atol=0, rtol=0)


def batch_of(*ranks: tuple[int, ...] | None) -> GroupBatch:
    groups = [
        Group(Prompt(text=f"p{g}"), tuple("r" * (r + 1) for r in range(len(row or (0, 1)))), ranks=row)
        for g, row in enumerate(ranks)
    ]
    return GroupBatch.from_ids(
        [[1]] * len(groups), [[[2] * (r + 1) for r in range(len(g.responses))] for g in groups], groups
    )


def test_groups_without_an_ordered_pair_are_dropped() -> None:
    batch = batch_of((0, 0), (1, 0), (0,), (0, 0, 1))
    kept = with_ordered_pairs(batch)
    assert [group.prompt.text for group in kept.groups] == ["p1", "p3"]
    assert batch.num_groups == 4
    assert with_ordered_pairs(batch_of((0, 0), (1, 1))).num_groups == 0
    same_after_cutting = batch_of((0, 1))
    cut = same_after_cutting.replace(response_ids=torch.tensor([2, 2]), lengths=torch.tensor([1, 1]))
    assert with_ordered_pairs(cut).num_groups == 0
    complete = batch_of((0, 1), (1, 0))
    assert with_ordered_pairs(complete) is complete


def test_missing_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="needs ranks"):
        Rankings.of_batch(batch_of((0, 1), None))
