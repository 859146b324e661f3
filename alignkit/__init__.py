"""alignkit: align language models with preferences, every part a plugin. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AlignkitError": "errors", "CheckpointError": "errors", "InputError": "errors", "PluginError": "errors",
    "StoppedByCheck": "errors",
    "Component": "interfaces", "Context": "interfaces", "Feed": "interfaces", "ForeignTrainer": "interfaces",
    "INTERFACE_VERSION": "interfaces",
    "MetricSink": "interfaces", "Metrics": "interfaces", "Model": "interfaces", "Optimizer": "interfaces",
    "Policy": "interfaces", "PolicyOutput": "interfaces", "PreferenceSource": "interfaces",
    "RewardSource": "interfaces", "Sampler": "interfaces", "Scorer": "interfaces", "ScorerOutput": "interfaces",
    "ComponentSpec": "options", "Config": "options", "RolloutOptions": "options", "Sampling": "options",
    "TrainingOptions": "options",
    "GroupBatch": "batch", "Totals": "batch",
    "Group": "records", "Prompt": "records", "read_groups": "records", "write_groups": "records",
    "hookimpl": "hookspecs",
}  # fmt: skip

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"alignkit.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
