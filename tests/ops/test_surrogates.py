"""The clipped losses, branch by branch, with values and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from alignkit.ops.surrogates import clipped_policy_loss, clipped_value_loss


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
    assert result.tolist() == pytest.approx([loss], abs=1e-6)
    if ratio != 1.0:
        (gradient,) = torch.autograd.grad(result.sum(), log_ratio)
        assert gradient.tolist() == pytest.approx([slope * ratio], abs=1e-6)


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
    assert result.tolist() == pytest.approx([loss], abs=1e-6)


def test_value_loss_without_clip() -> None:
    result = clipped_value_loss(torch.tensor([1.8]), torch.tensor([1.0]), torch.tensor([2.0]), 0.0)
    assert result.tolist() == pytest.approx([0.2**2 / 2], abs=1e-6)
