"""The best of n replies against all subsets."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from alignkit_report.overopt import best_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def test_the_sizes_are_powers_of_two_and_the_pool() -> None:
    assert [best_of.sizes(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    assert [best_of.kl_of(n) for n in (1, 2, 4)] == pytest.approx([0, 0.193147, 0.636294], abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    draw = np.random.default_rng(0)
    rewards, golds = draw.normal(size=(3, 6)), draw.normal(size=(3, 6))
    expected = [
        np.mean([golds[p][max(chosen, key=rewards[p].__getitem__)] for chosen in combinations(range(6), n)])
        for p in range(3)
    ]
    assert best_of.expected(rewards, golds, n) == pytest.approx(expected)


def test_equal_rewards_share_the_choice() -> None:
    rewards, golds = [1.0, 2.0, 2.0, 0.0, 2.0], [5.0, 1.0, 4.0, 9.0, 2.0]
    # Whichever order the samples came in, the first of the highest is taken.
    orders = [order[:3] for order in permutations(range(5))]
    expected = np.mean([golds[max(order, key=rewards.__getitem__)] for order in orders])
    assert best_of.expected(np.array([rewards]), np.array([golds]), 3) == pytest.approx([expected])


def test_a_pool_as_large_as_a_binomial_coefficient_can_be_is_no_problem() -> None:
    for n in (1, 512, 2048):
        assert best_of.weights(2048, n).sum() == pytest.approx(1)


def test_prompts_with_an_abstention_are_left_out_for_all_seeds() -> None:
    rewards = np.arange(24.0).reshape(2, 3, 4)
    golds = rewards.copy()
    golds[1, 0, 2] = np.nan
    found = best_of.curve(rewards, golds)
    assert found.shape == (2, 3, 2, 2)  # reward and gold; n = 1, 2, 4; seeds; prompts
    assert found[:, 2] == pytest.approx(np.array([[[7, 11], [19, 23]]] * 2))
    assert found[1, 0] == pytest.approx(np.array([[5.5, 9.5], [17.5, 21.5]]))
    rows = best_of.rows_of(found, 4)
    assert [row["n"] for row in rows] == [1, 2, 4]
    assert rows[2]["gold"] == rows[2]["reward"] == 15
    assert rows[2]["low"] < 15 < rows[2]["high"]
