"""The tables of a recipe: their roles, their default plugins, and how they merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignkit.options import Config, Sampling
from alignkit.recipe.options import CandidateOptions, EvalOptions, RunOptions

if TYPE_CHECKING:
    Key = tuple[str, ...]


ROLE_OF_TABLE = {
    "policy": "policy",
    "sampler": "sampler",
    "demonstrations": "preferences",
    "sft": "optimizer",
    "ptx": "preferences",
    "prompts": "preferences",
    "preferences": "preferences",
    "reward": "reward",
    "optimizer": "optimizer",
}
"""Tables with a plugin -> its role."""


OPTION_TABLES: dict[str, type[Config]] = {
    "run": RunOptions,
    "sampling": Sampling,
    "candidates": CandidateOptions,
    "eval": EvalOptions,
}
"""Tables without a plugin -> their options."""


DEFAULT_PLUGIN = {
    "policy": "hf",
    "sampler": "policy",
    "demonstrations": "dataset",
    "sft": "sft",
    "ptx": "dataset",
    "prompts": "dataset",
    "preferences": "dataset",
    "reward": "model",
}
"""Table -> default plugin."""


ALTERNATIVES = "for"
"""The sub-table with settings per plugin."""


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merges tables; later ones win, sub-tables merge key by key. A sub-table with a plugin replaces the earlier
    one."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            joins = isinstance(value, Mapping) and isinstance(below, Mapping) and "plugin" not in value
            result[key] = merged(below, value) if joins else value  # type: ignore[arg-type]
    return result


REWARD_TRAINING = "reward.train"
"""The pseudo-table of the Optimizer that trains the reward."""
