"""alignkit: align language models with preferences, every part a plugin. Importing this package imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.companions import Metrics
from alignkit.components import Component, Context
from alignkit.errors import AlignkitError, CheckpointError, InputError, PluginError, StoppedByCheck
from alignkit.hookspecs import hookimpl
from alignkit.interfaces import (
    INTERFACE_VERSION,
    Ask,
    Feed,
    ForeignTrainer,
    MetricSink,
    Model,
    Optimizer,
    Policy,
    PreferenceSource,
    RewardSource,
    Scorer,
)
from alignkit.options import ComponentSpec, Config, RolloutOptions, Sampling, TrainingOptions
from alignkit.outputs import PolicyOutput, ScorerOutput
from alignkit.records import Group, Prompt, read_groups, write_groups

if TYPE_CHECKING:
    from alignkit.batch import GroupBatch, Totals

__all__ = [
    "INTERFACE_VERSION",
    "AlignkitError",
    "Ask",
    "CheckpointError",
    "Component",
    "ComponentSpec",
    "Config",
    "Context",
    "Feed",
    "ForeignTrainer",
    "Group",
    "GroupBatch",
    "InputError",
    "MetricSink",
    "Metrics",
    "Model",
    "Optimizer",
    "PluginError",
    "Policy",
    "PolicyOutput",
    "PreferenceSource",
    "Prompt",
    "RewardSource",
    "RolloutOptions",
    "Sampling",
    "Scorer",
    "ScorerOutput",
    "StoppedByCheck",
    "Totals",
    "TrainingOptions",
    "hookimpl",
    "read_groups",
    "write_groups",
]


def __getattr__(name: str) -> Any:
    if name in ("GroupBatch", "Totals"):  # these need torch
        from alignkit import batch

        return getattr(batch, name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
