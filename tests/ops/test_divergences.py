"""Rewards of other divergences, against their definitions and by differences of f itself."""

from __future__ import annotations

import math

import pytest
import torch

from alignkit.ops.divergences import derivative

F = {
    "reverse-kl": lambda u: u * math.log(u),
    "forward-kl": lambda u: -math.log(u),
    "js": lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
    "alpha": lambda u: (u**0.7 - 0.7 * u - 0.3) / (0.7 * -0.3),
}
"""f of arXiv:2309.16240, table 1; `alpha` at 0.3."""


@pytest.mark.parametrize("kind", F)
def test_it_is_the_slope_of_f(kind: str) -> None:
    ratios = torch.tensor([0.05, 0.4, 1.0, 1.7, 12.0], dtype=torch.float64)
    slopes = [(F[kind](u + 1e-6) - F[kind](u - 1e-6)) / 2e-6 for u in ratios.tolist()]
    found = derivative(ratios.log(), kind, 0.3)
    constant = slopes[2]
    assert found[2] == pytest.approx(0, abs=1e-12)
    assert found.tolist() == pytest.approx([slope - constant for slope in slopes], abs=1e-6)


def test_alpha_lies_between_the_two() -> None:
    logratios = torch.tensor([-3.0, 0.5, 4.0], dtype=torch.float64)
    torch.testing.assert_close(derivative(logratios, "alpha", 1e-9), logratios, rtol=1e-6, atol=0)
    torch.testing.assert_close(derivative(logratios, "alpha", 1.0), derivative(logratios, "forward-kl", 0.0))


def test_it_stays_finite_where_a_response_is_all_but_impossible() -> None:
    logratios = torch.tensor([-1e4], requires_grad=True)
    reward = derivative(logratios, "forward-kl", 0.0)
    (gradient,) = torch.autograd.grad(reward, logratios)
    assert bool(reward.isfinite())
    assert float(gradient) == 0.0


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match="no divergence 'kl'"):
        derivative(torch.zeros(1), "kl", 0.0)
