"""Contract tests: a plugin author inherits one and names the component, pytest does the rest."""

from __future__ import annotations

from alignkit.testing.contracts.component import ComponentContract
from alignkit.testing.contracts.metrics import MetricSinkContract
from alignkit.testing.contracts.optimizer import OptimizerContract
from alignkit.testing.contracts.policy import PolicyContract
from alignkit.testing.contracts.preferences import PreferenceSourceContract
from alignkit.testing.contracts.reward import RewardSourceContract
from alignkit.testing.contracts.sampler import SamplerContract
from alignkit.testing.contracts.values import ValuesContract

__all__ = [
    "ComponentContract",
    "MetricSinkContract",
    "OptimizerContract",
    "PolicyContract",
    "PreferenceSourceContract",
    "RewardSourceContract",
    "SamplerContract",
    "ValuesContract",
]
