"""GAE, whitening and running statistics against arithmetic written out in plain floats."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import pytest
import torch

from alignkit.ops.advantages import (
    RunningMoments,
    explained_variance,
    gae,
    group_mean,
    group_std,
    leave_one_out_mean,
    moments,
    rewards_to_go,
    whiten,
)
from alignkit.testing import near

if TYPE_CHECKING:
    from collections.abc import Callable

REWARDS = [0.1, -0.2, 1.0, 0.3, -0.4, 2.0]
VALUES = [0.5, 0.4, 0.3, -0.2, 0.6, 0.7]
LENGTHS = torch.tensor([3, 2, 1])


def by_hand(gamma: float, gae_lambda: float, behind_cut: float) -> list[float]:
    """Advantages of the three responses; the second one is cut off with the value `behind_cut` behind it."""
    decay = gamma * gae_lambda
    a3 = 1.0 + gamma * 0.0 - 0.3
    a2 = (-0.2 + gamma * 0.3 - 0.4) + decay * a3
    a1 = (0.1 + gamma * 0.4 - 0.5) + decay * a2
    b2 = -0.4 + gamma * behind_cut - 0.6
    b1 = (0.3 + gamma * 0.6 + 0.2) + decay * b2
    c1 = 2.0 + gamma * 0.0 - 0.7
    return [a1, a2, a3, b1, b2, c1]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.5, 0.0), (0.0, 0.5)])
def test_gae_of_unequal_lengths_by_hand(gamma: float, gae_lambda: float) -> None:
    advantages, returns = gae(
        torch.tensor(REWARDS),
        torch.tensor(VALUES),
        LENGTHS,
        torch.tensor([0.0, 0.9, 0.0]),
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    expected = by_hand(gamma, gae_lambda, behind_cut=0.9)
    assert advantages.tolist() == near(expected, terms=12)
    assert returns.tolist() == near([a + v for a, v in zip(expected, VALUES, strict=True)], terms=13)


def test_gae_of_a_response_does_not_depend_on_its_neighbours() -> None:
    def run(tokens: slice, lengths: list[int], behind: list[float]) -> torch.Tensor:
        rewards, values = torch.tensor(REWARDS)[tokens], torch.tensor(VALUES)[tokens]
        return gae(rewards, values, torch.tensor(lengths), torch.tensor(behind), gamma=0.9, gae_lambda=0.8)[0]

    together = run(slice(0, 6), [3, 2, 1], [0.0, 0.9, 0.0])
    assert torch.equal(run(slice(0, 3), [3], [0.0]), together[:3])
    assert torch.equal(run(slice(3, 5), [2], [0.9]), together[3:5])
    assert torch.equal(run(slice(3, 6), [2, 1], [0.9, 0.0]), together[3:])


def test_gae_leaves_its_inputs() -> None:
    rewards, values = torch.tensor(REWARDS), torch.tensor(VALUES)
    gae(rewards, values, LENGTHS, torch.zeros(3), gamma=1.0, gae_lambda=1.0)
    assert torch.equal(rewards, torch.tensor(REWARDS))
    assert torch.equal(values, torch.tensor(VALUES))


def test_whitening_by_hand() -> None:
    x = [1.0, 2.0, 3.0, 6.0]
    mean, deviation = 3.0, ((4 + 1 + 0 + 9) / 4) ** 0.5
    expected = [(value - mean) / deviation for value in x]
    assert whiten(torch.tensor(x)).tolist() == near(expected, terms=12)
    kept = whiten(torch.tensor(x), shift_mean=False)
    assert kept.tolist() == near([value + mean for value in expected], terms=13)


def test_whitening_keeps_order_and_sign() -> None:
    whitened = whiten(torch.tensor([-1.0, 0.0, 2.0]))
    assert whitened[0] < whitened[1] < 0 < whitened[2]


def test_whitening_one_or_equal_values_is_finite() -> None:
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert whiten(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]


def another_process_with(*sums: list[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A sum over two processes, of which the other one brings `sums`, one a call."""
    answers = iter(sums)
    return lambda x: x + torch.tensor(next(answers)).reshape(x.shape)


def test_whitening_is_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, elsewhere = [1.0, 2.0], [3.0, 6.0, 8.0]
    mean = statistics.fmean(x + elsewhere)
    deviation = statistics.pstdev(x + elsewhere)
    total = another_process_with([17.0, 3.0], [sum((value - mean) ** 2 for value in elsewhere)])
    monkeypatch.setattr("alignkit.ops.advantages.sum_over_processes", total)
    assert whiten(torch.tensor(x)).tolist() == near([(v - mean) / deviation for v in x], terms=14)


def test_moments_of_large_values_do_not_cancel() -> None:
    mean, variance, count = moments(torch.tensor([10000.0, 10001.0, 10002.0]))
    assert (float(mean), float(count)) == (10001.0, 3.0)
    assert float(variance) == near(2 / 3, terms=4)


def test_explained_variance_by_hand() -> None:
    returns, values = [1.0, 2.0, 3.0], [1.0, 2.0, 2.0]
    residual_variance = (1 / 9 + 1 / 9 + 4 / 9) / 3
    expected = 1 - residual_variance / (2 / 3)
    assert explained_variance(torch.tensor(values), torch.tensor(returns)) == near(expected, terms=12)
    assert explained_variance(torch.tensor(returns), torch.tensor(returns)) == 1.0
    assert explained_variance(torch.tensor(values), torch.tensor([2.0, 2.0, 2.0])) == 0.0


def test_running_moments_are_those_of_everything_seen() -> None:
    running, seen = RunningMoments(), []
    for part in ([1.0, 5.0, 2.0], [4.0], [-3.0, 0.5]):
        running.update(torch.tensor(part))
        seen += part
    mean, deviation = statistics.fmean(seen), statistics.pstdev(seen)
    expected = [(value - mean) / deviation for value in (0.0, 2.0)]
    assert running.normalize(torch.tensor([0.0, 2.0])).tolist() == near(expected, terms=20)


def test_running_moments_of_equal_values_normalise_them_to_zero() -> None:
    running = RunningMoments()
    running.update(torch.tensor([2.0, 2.0]))
    assert running.normalize(torch.tensor([2.0, 2.5])).tolist() == near([0.0, 5e3], terms=4)


def test_running_moments_go_on_from_their_state() -> None:
    first, second = RunningMoments(), RunningMoments()
    first.update(torch.tensor([1.0, 5.0]))
    second.load_state_dict(first.state_dict())
    for running in (first, second):
        running.update(torch.tensor([2.0, 9.0]))
    assert second.state_dict() == first.state_dict()
    assert second.state_dict()["count"] == 4.0


GROUPS = torch.tensor([0, 0, 0, 1, 2, 2])
SCORES = torch.tensor([1.0, 2.0, 6.0, 5.0, -1.0, 4.0])


def test_group_statistics_by_hand() -> None:
    assert group_mean(SCORES, GROUPS).tolist() == [3.0, 3.0, 3.0, 5.0, 1.5, 1.5]
    assert leave_one_out_mean(SCORES, GROUPS).tolist() == [4.0, 3.5, 1.5, 5.0, 4.0, -1.0]
    three, two = math.sqrt((4 + 1 + 9) / 2), math.sqrt(2.5**2 * 2)
    assert group_std(SCORES, GROUPS).tolist() == near([three, three, three, 0.0, two, two], terms=8)


@pytest.mark.parametrize("value", [0.1, 1000.1, -7e6, 1e-30])
def test_equal_rewards_have_advantages_of_exactly_zero(value: float) -> None:
    rewards, groups = torch.full((7,), value), torch.zeros(7, dtype=torch.long)
    assert torch.equal(group_mean(rewards, groups), rewards)
    assert torch.equal(leave_one_out_mean(rewards, groups), rewards)
    assert torch.equal(group_std(rewards, groups), torch.zeros(7))


def test_statistics_of_nearly_equal_rewards_do_not_cancel() -> None:
    rewards, groups = torch.tensor([1000.0, 1000.0, 1000.001]), torch.zeros(3, dtype=torch.long)
    gap = float(rewards[2]) - 1000.0
    assert group_std(rewards, groups).tolist() == near([gap / math.sqrt(3)] * 3, terms=8)
    deviations = rewards.double() - leave_one_out_mean(rewards.double(), groups)
    assert deviations.tolist() == pytest.approx([-gap / 2, -gap / 2, gap], rel=1e-6)


def test_rewards_to_go_by_hand() -> None:
    expected = [0.1 - 0.2 + 1.0, -0.2 + 1.0, 1.0, 0.3 - 0.4, -0.4, 2.0]
    assert rewards_to_go(torch.tensor(REWARDS), LENGTHS).tolist() == near(expected, terms=6)
