"""Conjugate gradient against a solved system, and the numeric derivative against known ones."""

from __future__ import annotations

import pytest
import torch
from alignkit_ppo.natural_gradient import assign, conjugate_gradient, directional_derivative, flattened

MATRIX = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]], dtype=torch.float64)
TARGET = MATRIX @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def test_conjugate_gradient_solves_in_as_many_products_as_there_are_unknowns() -> None:
    products = 0

    def product(vector: torch.Tensor) -> torch.Tensor:
        nonlocal products
        products += 1
        return MATRIX @ vector

    found = conjugate_gradient(product, TARGET, iterations=10)
    assert found.tolist() == pytest.approx([1.0, -2.0, 3.0], abs=1e-9)
    assert products == 3


def test_one_product_is_the_best_step_along_the_target() -> None:
    found = conjugate_gradient(MATRIX.__matmul__, TARGET, iterations=1)
    best = float(TARGET @ TARGET / (TARGET @ MATRIX @ TARGET))
    assert found.tolist() == pytest.approx((best * TARGET).tolist(), abs=1e-12)


def test_conjugate_gradient_against_a_direct_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T / 20 + 0.1 * torch.eye(12, dtype=torch.float64)
    target = torch.randn(12, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, target)
    errors = []
    for iterations in (3, 6, 12, 30):
        found = conjugate_gradient(matrix.__matmul__, target, iterations=iterations, tolerance=1e-24)
        gap = found - exact
        errors.append(float((gap @ matrix @ gap).sqrt()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01
    assert errors[2] < 1e-9


def test_conjugate_gradient_stops_when_the_residual_is_small_enough() -> None:
    # Two eigenvalues, so that the second product is the last.
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.5], dtype=torch.float64))
    target = torch.ones(3, dtype=torch.float64)
    first = conjugate_gradient(matrix.__matmul__, target, iterations=1)
    residual = matrix @ first - target
    share = float(residual @ residual / (target @ target))
    stopped = conjugate_gradient(matrix.__matmul__, target, iterations=5, tolerance=share * 1.01)
    assert torch.equal(stopped, first)
    went_on = conjugate_gradient(matrix.__matmul__, target, iterations=5, tolerance=share * 0.99)
    assert went_on.tolist() == pytest.approx([1.0, 1.0, 1 / 1.5], abs=1e-12)


@pytest.mark.parametrize("length", [1e-4, 1.0, 1e4])
def test_directional_derivative(length: float) -> None:
    at = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    vector = length * torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[0] * x[1], x[2].exp(), x.sum(), x[0] ** 3])

    slopes = torch.tensor([-0.2 + 0.6, -float(torch.tensor(0.5).exp()), 2.0, 3 * 0.09], dtype=torch.float64)
    found = directional_derivative(function, at, vector)
    assert (found / length).tolist() == pytest.approx(slopes.tolist(), abs=1e-3)


def reaches_tried(slope: float, at: torch.Tensor) -> list[float]:
    """How far from `at` a function is asked for, once for each attempt, along a vector of length 2."""
    vector, asked = torch.tensor([2.0, 0.0], dtype=torch.float64), []

    def linear(x: torch.Tensor) -> torch.Tensor:
        asked.append(float((x - at)[0]) / 2)
        return slope * (x - at)[0] * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)

    found = directional_derivative(linear, at, vector)
    assert found.tolist() == pytest.approx([2 * slope, -2 * slope, 2 * slope], rel=1e-9)
    assert asked[::2] == pytest.approx([-reach for reach in asked[1::2]], rel=1e-9)
    return asked[::2]


@pytest.mark.parametrize(
    ("change", "attempts"), [(0.03, 1), (0.0032, 1), (0.0028, 2), (0.08, 1), (0.1, 2), (1e-5, 2), (40.0, 2)]
)
def test_the_reach_makes_a_change_of_some_hundredths(change: float, attempts: int) -> None:
    # The first reach is a thousandth of the weights' norm, here of 5; that of the vector is 2.
    first = 5 / 2 * 1e-3
    reaches = reaches_tried(change / (2 * first), torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert len(reaches) == attempts
    assert reaches[0] == pytest.approx(first, rel=1e-9)
    if attempts == 2:
        assert reaches[1] == pytest.approx(first * 0.03 / change, rel=1e-6)


def test_the_reach_at_weights_of_zero_is_not_zero() -> None:
    assert reaches_tried(1e9, torch.zeros(2, dtype=torch.float64))[0] == pytest.approx(5e-16, rel=1e-6)


def test_a_function_that_jumps_is_given_up_on() -> None:
    asked = 0

    def jump(x: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += 1
        return x.sign()

    directional_derivative(jump, torch.zeros(1), torch.ones(1))
    assert asked == 2 * 4


def test_derivative_of_a_constant_is_zero() -> None:
    found = directional_derivative(lambda x: torch.ones(2), torch.ones(3), torch.ones(3))
    assert found.tolist() == [0.0, 0.0]


def test_assign_writes_what_flattened_read() -> None:
    tensors = [torch.arange(6.0).reshape(2, 3), torch.tensor([7.0])]
    copies = [torch.zeros(2, 3), torch.zeros(1)]
    assign(copies, flattened(tensors))
    assert all(torch.equal(one, other) for one, other in zip(tensors, copies, strict=True))
