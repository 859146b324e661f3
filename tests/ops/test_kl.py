"""The KL estimators against numbers worked out by hand and against exact divergences, and the controllers."""

from __future__ import annotations

import math

import pytest
import torch

from alignkit.ops.kl import AdaptiveKL, FixedKL, LinearKL, TargetKL, kl_controller, kl_estimate
from alignkit.testing import ELEMENTARY, near

POLICY, REFERENCE = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [math.log(3.0), 0.0, -math.log(5.0)]),
        ("k2", [math.log(3.0) ** 2 / 2, 0.0, math.log(5.0) ** 2 / 2]),
        ("k3", [1 / 3 - 1 + math.log(3.0), 0.0, 5.0 - 1 - math.log(5.0)]),
    ],
)
def test_estimates_by_hand(kind: str, expected: list[float]) -> None:
    estimate = kl_estimate(POLICY.log(), REFERENCE.log(), kind)  # type: ignore[arg-type]
    assert estimate.tolist() == near(expected, terms=2 * ELEMENTARY)


def test_k1_and_k3_are_unbiased_for_the_kl_of_policy_to_reference() -> None:
    exact = 0.6 * math.log(3.0) - 0.1 * math.log(5.0)
    for kind in ("k1", "k3"):
        estimate = kl_estimate(POLICY.log(), REFERENCE.log(), kind)  # type: ignore[arg-type]
        assert float((POLICY * estimate).sum()) == near(exact, terms=2 * ELEMENTARY + 3)


def gradient(objective: torch.Tensor, logits: torch.Tensor) -> list[float]:
    (result,) = torch.autograd.grad(objective, logits)
    return result.tolist()


def test_gradients_inside_a_loss_are_what_the_docstring_says() -> None:
    logits = POLICY.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    reverse = gradient((logprobs.exp() * (logprobs - REFERENCE.log())).sum(), logits)
    forward = gradient((REFERENCE * (REFERENCE.log() - logits.log_softmax(0))).sum(), logits)
    for kind, expected in (("k1", [0.0, 0.0, 0.0]), ("k2", reverse), ("k3", forward)):
        estimate = kl_estimate(logits.log_softmax(0), REFERENCE.log(), kind)  # type: ignore[arg-type]
        assert gradient((POLICY * estimate).sum(), logits) == near(expected, terms=3 * ELEMENTARY, scale=1.0)


def test_an_unknown_estimator_is_named() -> None:
    with pytest.raises(ValueError, match="no KL estimate 'k4' from sampled tokens: choose one of k1, k2, k3"):
        kl_estimate(POLICY, REFERENCE, "k4")  # type: ignore[arg-type]


def test_fixed_stays() -> None:
    controller = FixedKL(0.3)
    controller.update(50.0, 1000)
    assert controller.coef == 0.3


@pytest.mark.parametrize(
    ("kl", "responses", "expected"),
    [
        (6.6, 100.0, 0.1 * (1 + 0.1 * 0.1)),
        (5.4, 100.0, 0.1 * (1 - 0.1 * 0.1)),
        (6.0, 100.0, 0.1),
        (60.0, 100.0, 0.1 * (1 + 0.2 * 0.1)),
        (-1.0, 100.0, 0.1 * (1 - 0.2 * 0.1)),
        (0.0, 9000.0, 0.1 * 0.8),
    ],
)
def test_adaptive_by_hand(kl: float, responses: float, expected: float) -> None:
    controller = AdaptiveKL(0.1, target=6.0, horizon=1000.0)
    controller.update(kl, responses)
    assert controller.coef == pytest.approx(expected, rel=1e-12)


def test_adaptive_goes_on_from_its_state() -> None:
    first = AdaptiveKL(0.1, target=6.0, horizon=1000.0)
    first.update(9.0, 64)
    second = AdaptiveKL(0.1, target=6.0, horizon=1000.0)
    second.load_state_dict(first.state_dict())
    first.update(2.0, 64)
    second.update(2.0, 64)
    assert second.coef == first.coef != 0.1


@pytest.mark.parametrize(("kl", "factor"), [(9.1, 2.0), (8.9, 1.0), (6.0, 1.0), (4.1, 1.0), (3.9, 0.5), (-1.0, 0.5)])
def test_target_doubles_and_halves(kl: float, factor: float) -> None:
    controller = TargetKL(0.1, target=6.0)
    controller.update(kl, 8)
    assert controller.coef == pytest.approx(0.1 * factor, rel=1e-12)


def test_linear_goes_to_its_end_and_stays() -> None:
    controller = LinearKL(0.1, end=0.02, horizon=100.0)
    seen = []
    for _ in range(5):
        seen.append(controller.coef)
        controller.update(9.0, 30)
    assert seen == pytest.approx([0.1, 0.076, 0.052, 0.028, 0.02], abs=1e-12)


def test_linear_goes_on_from_its_state() -> None:
    first, second = (LinearKL(0.1, end=0.5, horizon=100.0) for _ in range(2))
    first.update(1.0, 30)
    second.load_state_dict(first.state_dict())
    second.update(1.0, 20)
    assert second.coef == pytest.approx(0.3, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("fixed", 0.1), ("adaptive", 0.1 * (1 + 0.2 * 0.25)), ("linear", 0.75 * 0.1 + 0.25 * 0.9), ("target", 0.2)],
)
def test_controllers_by_name(kind: str, expected: float) -> None:
    controller = kl_controller(kind, 0.1, target=6.0, horizon=40.0, end=0.9)  # type: ignore[arg-type]
    controller.update(100.0, 10)
    assert controller.coef == pytest.approx(expected, rel=1e-12)


def test_an_unknown_controller_is_named() -> None:
    with pytest.raises(ValueError, match="no KL controller 'pid': choose one of fixed, adaptive, linear, target"):
        kl_controller("pid", 0.1, target=6.0, horizon=40.0, end=0.9)  # type: ignore[arg-type]
