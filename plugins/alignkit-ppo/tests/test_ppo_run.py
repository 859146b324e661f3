"""PPO in the training loop: it learns, it stops early, and what is interrupted goes on bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_ppo.options import PPOOptions
from alignkit_ppo.ppo import A2C, PPO
from alignkit_ppo.ppo_kl import PPOKL
from alignkit_ppo.trpo import TRPO

from alignkit.components import Context
from alignkit.options import Sampling
from alignkit.records import Prompt
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.testing.runs import assert_goes_on_bit_for_bit
from alignkit.training.engine import train
from alignkit.training.feeds import RolloutFeed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROMPTS = [Prompt(text=text) for text in ("red", "green", "blue", "a longer one")]
DEFAULTS = {
    "learning_rate": 0.02,
    "batch_size": 4,
    "group_size": 8,
    "minibatch_size": 2,
    "n_epochs": 2,
    "critic_lr_scale": 2.0,
}


class KilledError(Exception):
    """The process has gone."""


def run(
    folder: Path, *, kill_after: int = 0, resume: bool = False, **options: Any
) -> tuple[PPO, list[Mapping[str, Any]]]:
    config = PPOOptions(**{**DEFAULTS, **options})
    policy, reward = TinyPolicy(context=Context(seed=1)), TinyReward()
    ppo = PPO(config, policy=policy, reward=reward)
    log: list[Mapping[str, Any]] = []

    def on_step(record: Mapping[str, Any]) -> None:
        log.append(record)
        if record["step"] == kill_after:
            raise KilledError

    feed = RolloutFeed(PROMPTS, policy, reward, sampling=Sampling(max_tokens=8), options=config, seed=5)
    train(ppo, feed, folder=folder, seed=5, on_step=on_step, resume=resume)
    return ppo, log


def weights(ppo: PPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for module in ppo.modules().values() for p in module.parameters()])


@pytest.mark.parametrize("critic", ["shared", "policy"])
def test_the_reward_rises(tmp_path: Path, critic: str) -> None:
    _, log = run(tmp_path, critic=critic, iterations=25, kl_coef=0.01)
    assert log[0]["reward"] < 0.1
    assert log[-1]["reward"] > 0.5
    assert log[-1]["finished"] > 0.8
    assert log[-1]["kl"] > 1.0


@pytest.mark.parametrize("critic", ["shared", "policy"])
def test_goes_on_bit_for_bit(tmp_path: Path, critic: str) -> None:
    options: dict[str, Any] = {
        "critic": critic, "iterations": 3, "save_every": 3, "normalize_rewards": True,
        "kl_controller": "adaptive", "kl_target": 0.1, "kl_horizon": 100.0,
    }  # fmt: skip
    whole, log = run(tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        run(tmp_path / "part", kill_after=8, **options)
    resumed, rest = run(tmp_path / "part", resume=True, **options)
    assert [record["step"] for record in rest] == list(range(7, 13))
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.state_dict() == whole.state_dict()
    assert log[-1]["kl_coef"] == rest[-1]["kl_coef"] != PPOOptions().kl_coef
    assert log[-1]["reward"] == rest[-1]["reward"]


@pytest.mark.parametrize(
    ("component", "options"),
    [
        (PPOKL, {"n_epochs": 2, "penalty_target": 0.001, "normalize_rewards": True}),
        (A2C, {"kl_controller": "target", "kl_target": 0.1}),
        (TRPO, {"trust_region": 0.02, "cg_iterations": 3, "kl_controller": "linear", "kl_horizon": 60.0}),
    ],
)
def test_the_others_go_on_bit_for_bit(tmp_path: Path, component: type[Any], options: dict[str, Any]) -> None:
    assert_goes_on_bit_for_bit(component, tmp_path, **options)


def test_stops_a_batch_early_once_the_policy_has_moved_too_far(tmp_path: Path) -> None:
    _, log = run(tmp_path, iterations=3, stop_kl=1e-9, warmup=0.0)
    assert len(log) == 6
    _, log = run(tmp_path / "all", iterations=3)
    assert len(log) == 12
