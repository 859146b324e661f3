"""Every algorithm keeps the contract of alignment algorithms, as it is and with the options that change its course."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from alignkit_grpo.members import DAPO, GRPO, GSPO, REINFORCE, RLOO, DrGRPO, REINFORCEPlusPlus, ReMax

from alignkit.testing import OptimizerContract

if TYPE_CHECKING:
    from collections.abc import Mapping


class TestGRPO(OptimizerContract):
    component = GRPO


class TestRLOO(OptimizerContract):
    component = RLOO


class TestREINFORCE(OptimizerContract):
    component = REINFORCE


class TestDrGRPO(OptimizerContract):
    component = DrGRPO


class TestDAPO(OptimizerContract):
    component = DAPO


class TestGSPO(OptimizerContract):
    component = GSPO


class TestREINFORCEPlusPlus(OptimizerContract):
    component = REINFORCEPlusPlus


class TestReMax(OptimizerContract):
    component = ReMax


class TestEveryTerm(OptimizerContract):
    """What no algorithm has by default."""

    component = GRPO
    options: ClassVar[Mapping[str, Any]] = {
        "group_size": 4,
        "ent_coef": 0.1,
        "dual_clip": 3.0,
        "off_policy_kl": 0.05,
        "kl_controller": "linear",
        "kl_importance": True,
        "loss_length": 0.0,
        "aggregation": "sum",
        "normalize_rewards": True,
        "reward_clip": 2.0,
        "missing_eos_penalty": 0.3,
        "overlong_penalty": 0.5,
        "truncated": "drop",
        "credit": "token",
        "normalize_advantages": "tokens",
    }
