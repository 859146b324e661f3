"""In the training loop: the reward rises, and what is interrupted goes on bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_grpo.members import DAPO, GRPO, REINFORCE, RLOO, ReMax

from alignkit.testing.runs import assert_goes_on_bit_for_bit, online_run, weights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("component", [GRPO, RLOO, DAPO])
def test_the_reward_rises(tmp_path: Path, component: type[Any]) -> None:
    _, log = online_run(component, tmp_path, iterations=40, kl_coef=0.01)
    assert log[0]["reward"] < 0.1
    assert log[-1]["reward"] > 0.5
    assert log[-1]["kl"] > 1.0


@pytest.mark.parametrize(
    ("component", "options"),
    [
        (GRPO, {"n_epochs": 2, "kl_controller": "linear", "kl_horizon": 60.0}),
        (RLOO, {"n_epochs": 2, "normalize_rewards": True, "kl_controller": "target", "kl_target": 0.1}),
        (DAPO, {"n_epochs": 2, "kl_coef": 0.1, "group_size": 2}),
        (REINFORCE, {"minibatch_size": 4}),
        (ReMax, {"minibatch_size": 4}),
    ],
)
def test_goes_on_bit_for_bit(tmp_path: Path, component: type[Any], options: dict[str, Any]) -> None:
    assert_goes_on_bit_for_bit(component, tmp_path, **options)


def test_rewards_that_never_differ_leave_the_policy(tmp_path: Path) -> None:
    options = {"iterations": 2, "letter": "Q", "overlong_penalty": 0.0}
    algorithm, log = online_run(DAPO, tmp_path / "trained", **options)
    start, _ = online_run(DAPO, tmp_path / "start", learning_rate=0.0, **options)
    assert [record["kept"] for record in log] == [0.0, 0.0]
    assert torch.equal(weights(algorithm), weights(start))
