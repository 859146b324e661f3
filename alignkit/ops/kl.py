"""Estimates of the KL divergence from sampled log-probabilities, and controllers of its coefficient.

Estimators: Schulman, "Approximating KL divergence" (2020, joschu.net/blog/kl-approx.html). Adaptive controller: Ziegler
et al., arXiv:1909.08593, section 2.2. Target controller: Schulman et al., arXiv:1707.06347, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from alignkit.ops.choices import KLControl, KLEstimator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLEstimator) -> Tensor:
    """Per-token estimates, in nats, of KL(policy || reference) at tokens that the policy sampled.

    With d = logprobs - ref_logprobs: k1 is d (unbiased, may be negative), k2 is d^2 / 2 (biased, never negative), k3 is
    exp(-d) - 1 + d (unbiased, never negative).

    This describes their values, not their gradients. As a term of the loss, only k2 has the expected gradient of
    KL(policy || reference); k1 has an expected gradient of zero, and k3 that of KL(reference || policy). In the reward,
    where it is a constant, k1 gives the policy gradient of KL(policy || reference).

    Args:
        logprobs: [R] under the policy.
        ref_logprobs: [R] under the reference.
        kind: k1, k2 or k3. `full` is not estimated from samples: see `Policy.forward(kl_to=...)`.

    Returns:
        [R]

    Raises:
        ValueError: unknown estimate.
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return (-difference).expm1() + difference
    sampled = [name for name in get_args(KLEstimator) if name != "full"]
    raise ValueError(f"no KL estimate {kind!r} from sampled tokens: choose one of {', '.join(sampled)}")


class FixedKL:
    """A constant coefficient."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, responses: float) -> None:
        """Adapts the coefficient to a batch's mean KL, in nats per response, and its number of responses."""

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coef = float(state["coef"])


class AdaptiveKL(FixedKL):
    """Proportional control of the coefficient in log space: it rises while the KL is above the target.

    coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * min(responses / horizon, 1)

    The min() is ours: without it a batch of five horizons could turn the coefficient negative.

    Args:
        coef: the coefficient at the start.
        target: KL to hold, in nats per response, > 0.
        horizon: responses over which the coefficient may change by about a fifth, > 0.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, responses: float) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(responses / self.horizon, 1.0)


class TargetKL(FixedKL):
    """Doubles the coefficient while the KL is above 1.5 * target, halves it while the KL is below target / 1.5.

    Args:
        coef: the coefficient at the start, > 0.
        target: KL to hold, in the unit of the KL passed to `update`, > 0.
    """

    def __init__(self, coef: float, target: float) -> None:
        super().__init__(coef)
        self.target = target

    def update(self, kl: float, responses: float) -> None:
        if kl > 1.5 * self.target:
            self.coef *= 2
        elif kl < self.target / 1.5:
            self.coef /= 2


class LinearKL(FixedKL):
    """Moves the coefficient linearly from one value to another, then keeps it.

    Args:
        coef: the coefficient at the start. end: at the end.
        horizon: responses until the end is reached, > 0.
    """

    def __init__(self, coef: float, end: float, horizon: float) -> None:
        super().__init__(coef)
        self.start, self.end, self.horizon, self.responses = coef, end, horizon, 0.0

    def update(self, kl: float, responses: float) -> None:
        self.responses += responses
        done = min(self.responses / self.horizon, 1.0)
        self.coef = (1 - done) * self.start + done * self.end

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "responses": self.responses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.responses = float(state["responses"])


def kl_controller(kind: KLControl, coef: float, *, target: float, horizon: float, end: float) -> FixedKL:
    """The controller of this name.

    Args:
        kind: fixed, adaptive (`AdaptiveKL`), linear (`LinearKL`) or target (`TargetKL`).
        coef, target, horizon, end: see the classes; each uses the ones it takes.

    Raises:
        ValueError: unknown controller.
    """
    if kind == "fixed":
        return FixedKL(coef)
    if kind == "adaptive":
        return AdaptiveKL(coef, target, horizon)
    if kind == "linear":
        return LinearKL(coef, end, horizon)
    if kind == "target":
        return TargetKL(coef, target)
    raise ValueError(f"no KL controller {kind!r}: choose one of {', '.join(get_args(KLControl))}")
