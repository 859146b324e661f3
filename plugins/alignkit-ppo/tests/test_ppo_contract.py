"""Each algorithm keeps the contract; PPO with each place of the critic and each option that adds a term."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from alignkit_ppo.ppo import A2C, PPO
from alignkit_ppo.ppo_kl import PPOKL
from alignkit_ppo.trpo import TRPO

from alignkit.testing import OptimizerContract

if TYPE_CHECKING:
    from collections.abc import Mapping


class TestSharedCritic(OptimizerContract):
    component = PPO


class TestOwnCritic(OptimizerContract):
    component = PPO
    options: ClassVar[Mapping[str, Any]] = {"critic": "policy"}


class TestEveryTerm(OptimizerContract):
    component = PPO
    options: ClassVar[Mapping[str, Any]] = {
        "ent_coef": 0.1,
        "kl_controller": "adaptive",
        "kl_estimator": "k3",
        "normalize_rewards": True,
        "reward_clip": 2.0,
        "group_size": 3,
    }


class TestPPOKL(OptimizerContract):
    component = PPOKL


class TestA2C(OptimizerContract):
    component = A2C


class TestTRPO(OptimizerContract):
    component = TRPO
