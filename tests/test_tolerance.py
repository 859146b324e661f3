"""The tolerance of numeric tests: its size by hand, and that sums in any order keep it while a mistake does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alignkit.testing import adam_rounding, assert_near, near, rounding, terms_of_network


def test_the_size_by_hand() -> None:
    # five deviations of sqrt(2 * 6 / 3) = 2 units of roundoff
    assert rounding(6) == 10 * 2**-24
    assert rounding(24, scale=3.0) == 60 * 2**-24
    assert rounding(6, dtype=torch.float64) == 10 * 2**-53
    assert rounding(6, dtype=torch.bfloat16) == 10 * 2**-8
    # each of 3 steps moves a weight by 0.1 times 1e8 of the gradient's error
    assert adam_rounding(6, steps=3, learning_rate=0.1) == pytest.approx(3e7 * 10 * 2**-53, rel=1e-12)


def test_terms_are_counted_layer_by_layer() -> None:
    modules = {"a": nn.Linear(3, 2), "b": nn.ModuleDict({"c": nn.Embedding(5, 4), "d": nn.LayerNorm(9)})}
    assert terms_of_network(modules, tokens=7) == 7 + (3 + 2) + (5 + 4)
    assert terms_of_network(modules["a"], tokens=1) == 6


@pytest.mark.parametrize("count", [3, 30, 300, 3000])
def test_sums_in_any_order_keep_it_and_a_lost_term_does_not(count: int) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(count, generator=generator)
        exact = torch.tensor(math.fsum(values.tolist()))
        one_by_one = torch.zeros(())
        for value in values[torch.randperm(count, generator=generator)]:
            one_by_one = one_by_one + value
        assert_near(one_by_one, exact, terms=count)
        with pytest.raises(AssertionError):
            assert_near(one_by_one - values.max(), exact, terms=count)


def test_what_is_compared_has_one_scale() -> None:
    expected = {"large": torch.tensor([1e4]), "small": torch.tensor([1.0])}
    found = {"large": torch.tensor([1e4]), "small": torch.tensor([1.0 + 20 * 2**-23])}
    assert_near(found, expected, terms=6)
    with pytest.raises(AssertionError, match="small"):
        assert_near(found, expected, terms=6, scale=1.0)
    with pytest.raises(AssertionError):
        assert_near({"small": expected["small"]}, expected, terms=6)
    assert_near([found["small"]], [expected["small"]], terms=6, dtype=torch.bfloat16)


def test_numbers_lists_and_dicts() -> None:
    last_bit = 2.0**-23
    assert 1 + 4 * last_bit == near(1.0, terms=6)
    assert 1 + 6 * last_bit != near(1.0, terms=6)
    assert [0.0, 100 * last_bit] == near([0.0, 0.0], terms=6, scale=20.0)
    assert {"a": 1 + 10 * last_bit, "b": 4.0} == near({"a": 1.0, "b": 4.0}, terms=6)
    assert near({"b": 1.0}, terms=6) != {"a": 1.0}


def test_zeros_have_no_scale() -> None:
    with pytest.raises(ValueError, match="scale"):
        near([0.0, 0.0], terms=6)
    with pytest.raises(ValueError, match="scale"):
        assert_near(torch.zeros(2), torch.zeros(2), terms=6)
