"""For plugin authors: contract tests to inherit from, and a tiny policy, scorer and reward to run them with.

pytest finds the fixtures `tiny_policy`, `tiny_reward`, `tiny_groups` and `known_answer` by itself.

    class TestMine(RewardSourceContract):
        component = Mine

Imports pytest only when a contract is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.testing.contracts import (
        ComponentContract,
        MetricSinkContract,
        OptimizerContract,
        PolicyContract,
        PreferenceSourceContract,
        RewardSourceContract,
        SamplerContract,
        ValuesContract,
    )
    from alignkit.testing.installed import contracts_for
    from alignkit.testing.known_answer import KnownAnswer
    from alignkit.testing.runner import run_contracts
    from alignkit.testing.tiny import TinyOptions, TinyPolicy, TinyReward, TinyRewardOptions, TinyScorer
    from alignkit.testing.tolerance import ELEMENTARY, adam_rounding, assert_near, near, rounding, terms_of_network

__all__ = [
    "ELEMENTARY",
    "ComponentContract",
    "KnownAnswer",
    "MetricSinkContract",
    "OptimizerContract",
    "PolicyContract",
    "PreferenceSourceContract",
    "RewardSourceContract",
    "SamplerContract",
    "TinyOptions",
    "TinyPolicy",
    "TinyReward",
    "TinyRewardOptions",
    "TinyScorer",
    "ValuesContract",
    "adam_rounding",
    "assert_near",
    "contracts_for",
    "near",
    "rounding",
    "run_contracts",
    "terms_of_network",
]

_OF_TOLERANCE = ("ELEMENTARY", "adam_rounding", "assert_near", "near", "rounding", "terms_of_network")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignkit.testing' has no attribute {name!r}")
    if name.startswith("Tiny"):
        return getattr(import_module("alignkit.testing.tiny"), name)
    if name in _OF_TOLERANCE:
        return getattr(import_module("alignkit.testing.tolerance"), name)
    import pytest

    pytest.register_assert_rewrite("alignkit.testing.contracts")
    homes = {"run_contracts": "runner", "contracts_for": "installed", "KnownAnswer": "known_answer"}
    module = homes.get(name, "contracts")
    return getattr(import_module(f"alignkit.testing.{module}"), name)
