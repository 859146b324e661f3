"""Every algorithm learns a problem whose answer is known, and those with a KL reach the closed-form optimum.

Distances are in total variation. The reference is 0.23 away from the optimum, and the trained policies at most 0.002
(RLOO, REINFORCE, REINFORCE++, Dr. GRPO and GSPO with the KL in the reward), 0.010 (GRPO) and 0.012 (ReMax), whichever
of six seeds the rollouts have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_grpo.members import DAPO, GRPO, GSPO, REINFORCE, RLOO, DrGRPO, REINFORCEPlusPlus, ReMax

from alignkit.errors import InputError
from alignkit.testing.known_answer import (
    REWARD_OF_TOKEN,
    ScoreOf,
    distance,
    learn,
    optimum,
    policy_of_four_tokens,
    token_distribution,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BETA = 0.5
EXACT = {"normalize_advantages": "none", "kl_coef": BETA}
"""Dividing by the deviation of a group changes what is optimised; dividing by that of the whole batch doesn't."""


def trained(
    component: type[Any],
    score: Callable[[str], float] = REWARD_OF_TOKEN.__getitem__,
    *,
    iterations: int = 80,
    rate: float = 0.03,
    max_tokens: int = 1,
    n: int = 128,
    **options: Any,
) -> Any:
    algorithm = component(component.Config(**options), policy=policy_of_four_tokens(), reward=ScoreOf(score))
    learn(algorithm, iterations=iterations, n=n, max_tokens=max_tokens, rate=rate)
    return algorithm


@pytest.mark.parametrize(
    ("component", "options"),
    [
        (RLOO, {"n_epochs": 2}),
        (REINFORCE, {}),
        (GRPO, {}),
        (GRPO, {"kl_estimator": "k2", "kl_importance": False}),
        (GRPO, {"kl_estimator": "full", "kl_importance": False}),
        (DrGRPO, {"kl_place": "reward", "n_epochs": 2}),
        (GSPO, {"kl_place": "reward", "clip_range": 0.2, "clip_range_high": 0.2}),
        (REINFORCEPlusPlus, {"normalize_advantages": "tokens"}),
        (ReMax, {"n": 1024}),
    ],
)
def test_reaches_the_optimum_of_the_reward_with_the_kl(component: type[Any], options: dict[str, Any]) -> None:
    algorithm = trained(component, **{"n": 512, **EXACT, **options})
    target = optimum(token_distribution(algorithm.reference), BETA)
    assert distance(token_distribution(algorithm.policy), target) < 0.02
    assert distance(token_distribution(algorithm.reference), target) > 0.2


def test_k3_in_the_loss_without_weights_has_another_optimum() -> None:
    """Its gradient is that of KL(reference || policy): policy = beta * reference / (multiplier - reward)."""
    algorithm = trained(GRPO, **EXACT, kl_importance=False, n=512)
    reference = token_distribution(algorithm.reference)
    rewards = torch.tensor(list(REWARD_OF_TOKEN.values()))
    low, high = 1.0 + 1e-6, 10.0
    for _ in range(60):
        multiplier = (low + high) / 2
        total = float((BETA * reference / (multiplier - rewards)).sum())
        low, high = (multiplier, high) if total > 1 else (low, multiplier)
    other = BETA * reference / (multiplier - rewards)
    found = token_distribution(algorithm.policy)
    assert distance(found, other) < 0.015
    assert distance(found, optimum(reference, BETA)) > 0.03


@pytest.mark.parametrize("component", [GRPO, RLOO, REINFORCE, DrGRPO, DAPO, REINFORCEPlusPlus, ReMax])
def test_without_a_kl_the_best_token_takes_all(component: type[Any]) -> None:
    algorithm = trained(component, kl_coef=0.0, iterations=60, rate=0.05)
    assert token_distribution(algorithm.policy)[1] > 0.95


def test_gspo_learns_within_its_narrow_clip() -> None:
    algorithm = trained(GSPO, iterations=60, rate=0.05)
    assert token_distribution(algorithm.policy)[1] > 0.95


@pytest.mark.parametrize("component", [GRPO, RLOO, REINFORCE])
def test_a_large_kl_penalty_keeps_the_reference(component: type[Any]) -> None:
    algorithm = trained(component, kl_coef=50.0, iterations=40)
    assert distance(token_distribution(algorithm.policy), token_distribution(algorithm.reference)) < 0.03


def starts_with_b(text: str) -> float:
    return float(text.startswith("b"))


@pytest.mark.parametrize("component", [GRPO, DrGRPO, DAPO, GSPO, RLOO, REINFORCE, REINFORCEPlusPlus, ReMax])
def test_credit_reaches_the_first_of_two_tokens(component: type[Any]) -> None:
    algorithm = trained(
        component, starts_with_b, iterations=40, rate=0.06, max_tokens=2, n=32, kl_coef=0.0, overlong_penalty=0.0
    )
    assert token_distribution(algorithm.policy)[2] > 0.9


def test_learns_to_stop_from_the_overlong_penalty() -> None:
    algorithm = trained(DAPO, lambda text: 0.0, iterations=30, rate=0.05, n=32, max_tokens=4, dynamic_sampling=False)
    assert algorithm.batch_metrics["response_length"] < 3.2
    assert algorithm.batch_metrics["finished"] > 0.9


@pytest.mark.parametrize("options", [{"kl_place": "reward", "kl_importance": False}, {"kl_importance": True}])
def test_the_exact_kl_is_a_term_of_the_loss_without_weights(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="only in the loss"):
        GRPO.Config(kl_estimator="full", **options).check()
