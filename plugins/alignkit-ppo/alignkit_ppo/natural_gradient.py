"""Natural gradients without the Fisher matrix: Schulman et al., arXiv:1502.05477, section 6 and appendix C."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

FIRST_REACH = 1e-3
"""First step of a finite difference, as a share of the norm of the weights."""
CHANGE, REACH_ATTEMPTS = 0.03, 4


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """All values of several tensors on one axis."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@torch.no_grad()
def assign(parameters: Sequence[Tensor], values: Tensor) -> None:
    """Writes flat values into the parameters; the inverse of `flattened`."""
    parts = torch.split(values, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))


def directional_derivative(function: Callable[[Tensor], Tensor], at: Tensor, vector: Tensor) -> Tensor:
    """[R] the derivative of a function [P] -> [R] at `at` [P] along a non-zero vector [P], by a central difference.

    The step is chosen so that the function changes by a few hundredths (root mean square): far above rounding, and
    small enough for the quadratic error.
    """
    reach = float(at.norm().clamp(min=1e-12) / vector.norm()) * FIRST_REACH
    for _ in range(REACH_ATTEMPTS):
        change = (function(at + reach * vector) - function(at - reach * vector)) / 2
        derivative, size = change / reach, float(change.square().mean().sqrt())
        if size == 0 or CHANGE / 10 < size < CHANGE * 3:
            break
        reach *= CHANGE / size
    return derivative


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """x with A x = target, for a symmetric positive definite A given by its products.

    Args:
        product: v -> A v. target: [P], not zero.
        iterations: maximum number of products, >= 1.
        tolerance: stops when the residual's square is below this share of the target's.
    """
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    square = residual @ residual
    enough = tolerance * square
    for _ in range(iterations):
        image = product(direction)
        step = square / (direction @ image)
        x += step * direction
        residual -= step * image
        previous, square = square, residual @ residual
        if square <= enough:
            break
        direction = residual + square / previous * direction
    return x
