"""The clipped losses, branch by branch, with values and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from alignkit.batch import GroupBatch
from alignkit.ops.surrogates import (
    aggregate,
    clipped_policy_loss,
    clipped_value_loss,
    off_policy_mask,
    pooled_log_ratio,
    truncated_policy_loss,
)
from alignkit.records import Group, Prompt
from alignkit.testing import ELEMENTARY, near

TERMS = ELEMENTARY + 4
"""Of a loss: a ratio is an exp, and there are some products."""


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.0),
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -2.0),
        (1.5, -2.0, 3.0, 2.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_policy_loss_and_its_slope_by_ratio(ratio: float, advantage: float, loss: float, slope: float) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    result = clipped_policy_loss(log_ratio, torch.tensor([advantage]), 0.2)
    assert result.tolist() == near([loss], terms=TERMS)
    if ratio != 1.0:
        (gradient,) = torch.autograd.grad(result.sum(), log_ratio)
        assert gradient.tolist() == near([slope * ratio], terms=TERMS, scale=4.0)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_policy_gradient_at_ratio_one_is_the_advantage(advantage: float) -> None:
    log_ratio = torch.zeros(1, requires_grad=True)
    clipped_policy_loss(log_ratio, torch.tensor([advantage]), 0.2).sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == [-advantage]


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.1, 1.0, 2.0, 0.9**2 / 2),
        (1.8, 1.0, 2.0, 0.8**2 / 2),
        (0.5, 1.0, 0.0, 0.8**2 / 2),
        (3.0, 1.0, 1.1, 1.9**2 / 2),
    ],
)
def test_value_loss_by_hand(value: float, old: float, target: float, loss: float) -> None:
    result = clipped_value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), 0.2)
    assert result.tolist() == near([loss], terms=TERMS)


def test_value_loss_without_clip() -> None:
    result = clipped_value_loss(torch.tensor([1.8]), torch.tensor([1.0]), torch.tensor([2.0]), 0.0)
    assert result.tolist() == near([0.2**2 / 2], terms=4, scale=2.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.25, 2.0, -2.5),
        (1.5, 2.0, -2.6),
        (0.5, 2.0, -1.0),
        (0.5, -2.0, 1.6),
        (1.5, -2.0, 3.0),
        (2.5, -2.0, 4.0),
        (2.5, 2.0, -2.6),
    ],
)
def test_policy_loss_with_a_higher_upper_end_and_a_bound(ratio: float, advantage: float, loss: float) -> None:
    result = clipped_policy_loss(
        torch.tensor([math.log(ratio)]), torch.tensor([advantage]), 0.2, clip_range_high=0.3, dual_clip=2.0
    )
    assert result.tolist() == near([loss], terms=TERMS)


@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.1), (1.2, 1.2), (7.0, 1.5)])
def test_truncated_weights_keep_every_gradient(ratio: float, weight: float) -> None:
    logprobs = torch.tensor([-2.0], requires_grad=True)
    loss = truncated_policy_loss(logprobs + 2.0 + math.log(ratio), torch.tensor([3.0]), logprobs, 1.5)
    assert loss.tolist() == near([-3.0 * weight * -2.0], terms=TERMS)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert gradient.tolist() == near([-3.0 * weight], terms=TERMS)


def responses() -> GroupBatch:
    """Three responses of 3, 2 and 1 tokens in two groups."""
    groups = [Group(Prompt(text="p"), ("abc", "de")), Group(Prompt(text="q"), ("f",))]
    return GroupBatch.from_ids([[1], [2]], [[[1, 2, 3], [4, 5]], [[6]]], groups)


X = torch.tensor([0.3, -0.6, 0.9, 0.5, 0.1, -0.4])


def test_log_ratios_of_whole_responses() -> None:
    assert pooled_log_ratio(X, responses(), "token") is X
    sums = pooled_log_ratio(X, responses(), "sequence")
    assert sums.tolist() == near([0.6, 0.6, 0.6, 0.6, 0.6, -0.4], terms=6)
    means = pooled_log_ratio(X, responses(), "sequence-mean")
    assert means.tolist() == near([0.2, 0.2, 0.2, 0.3, 0.3, -0.4], terms=6)
    with pytest.raises(ValueError, match="no level of the ratio 'word'"):
        pooled_log_ratio(X, responses(), "word")  # type: ignore[arg-type]


def test_aggregation_by_hand() -> None:
    batch = responses()
    assert float(aggregate(batch, X, "token")) == near(0.8 / 6, terms=7, scale=0.9)
    assert float(aggregate(batch, X, "response")) == near((0.2 + 0.3 - 0.4) / 3, terms=7, scale=0.9)
    assert float(aggregate(batch, X, "sum")) == near((0.6 + 0.6 - 0.4) / 3, terms=7, scale=0.9)
    assert float(aggregate(batch, X, "sum", 4.0)) == near((0.6 + 0.6 - 0.4) / 12, terms=7, scale=0.9)
    with pytest.raises(ValueError, match="no aggregation 'group'"):
        aggregate(batch, X, "group")  # type: ignore[arg-type]


def test_off_policy_responses_are_left_out_where_they_are_bad() -> None:
    advantages = torch.tensor([-1.0, -1.0, 1.0, -1.0, 0.0, -1.0])
    # The policy has moved away by 0.2, 0.3 and -0.4 nats a token.
    assert off_policy_mask(-X, advantages, responses(), 0.25).tolist() == [True, True, True, False, True, True]
    assert off_policy_mask(X, advantages, responses(), 0.25).tolist() == [True, True, True, True, True, False]


def test_a_response_at_the_limit_is_kept() -> None:
    advantages, half = torch.full((6,), -1.0), torch.full((6,), 0.5)
    assert off_policy_mask(-half, advantages, responses(), 0.5).all()
    assert not off_policy_mask(-half, advantages, responses(), 0.499).any()
