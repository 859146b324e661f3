"""Estimates of the KL divergence from sampled log-probabilities, and controllers of its coefficient.

The estimators are those of Schulman, "Approximating KL divergence" (2020, joschu.net/blog/kl-approx.html), the
adaptive controller is the one of Ziegler et al., arXiv:1909.08593, section 2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLEstimator) -> Tensor:
    """Per-token estimates, in nats, of KL(policy || reference) at tokens that the policy sampled.

    With d = logprobs - ref_logprobs: k1 is d (unbiased, may be negative), k2 is d^2 / 2 (biased, never negative), k3 is
    exp(-d) - 1 + d (unbiased, never negative).

    That is about their values. As a term of a differentiated loss, only k2 has the expected gradient of KL(policy ||
    reference); that of k1 is zero, and that of k3 is biased: it is the one of KL(reference || policy). In the reward,
    as a constant, it is k1 whose policy gradient is that of KL(policy || reference).

    Args:
        logprobs: [R] under the policy.
        ref_logprobs: [R] under the reference.
        kind: k1, k2 or k3.

    Returns:
        [R]

    Raises:
        ValueError: no such estimator.
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return (-difference).expm1() + difference
    raise ValueError(f"no KL estimator {kind!r}: choose one of {', '.join(get_args(KLEstimator))}")


class FixedKL:
    """A coefficient that stays as it is."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, responses: float) -> None:
        """Takes note of the mean KL of a batch, in nats a response, and of its number of responses."""

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coef = float(state["coef"])


class AdaptiveKL(FixedKL):
    """Proportional control of the coefficient in log space: it rises while the KL is above the target.

    coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * min(responses / horizon, 1)

    The minimum is ours: without it a batch of five horizons could turn the coefficient negative.

    Args:
        coef: the coefficient at the start.
        target: KL to hold, in nats a response, > 0.
        horizon: responses over which the coefficient may change by about a fifth, > 0.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, responses: float) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(responses / self.horizon, 1.0)
