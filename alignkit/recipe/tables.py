"""The tables of a recipe: their roles, their defaults, and how they are laid over one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignkit.options import Config, Sampling
from alignkit.recipe.options import CandidateOptions, EvalOptions, RunOptions

if TYPE_CHECKING:
    Key = tuple[str, ...]


ROLE_OF_TABLE = {
    "policy": "policy",
    "demonstrations": "preferences",
    "sft": "optimizer",
    "ptx": "preferences",
    "prompts": "preferences",
    "preferences": "preferences",
    "reward": "reward",
    "optimizer": "optimizer",
}
"""The tables that name a plugin, and its role."""


OPTION_TABLES: dict[str, type[Config]] = {
    "run": RunOptions,
    "sampling": Sampling,
    "candidates": CandidateOptions,
    "eval": EvalOptions,
}
"""The tables of alignkit's own options."""


DEFAULT_PLUGIN = {
    "policy": "hf",
    "demonstrations": "dataset",
    "sft": "sft",
    "ptx": "dataset",
    "prompts": "dataset",
    "preferences": "dataset",
    "reward": "model",
}
"""The plugin of a table that names none."""


ALTERNATIVES = "for"
"""The sub-table with settings by plugin name."""


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over one another, later ones on top, sub-tables key by key. A sub-table with a plugin replaces."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            joins = isinstance(value, Mapping) and isinstance(below, Mapping) and "plugin" not in value
            result[key] = merged(below, value) if joins else value  # type: ignore[arg-type]
    return result


REWARD_TRAINING = "reward.train"
"""The pseudo-table of the Optimizer that trains the reward."""
