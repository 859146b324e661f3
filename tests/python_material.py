"""What the tests of the Python API share: a tiny Llama in a folder, rankings, a recipe, a reward."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy

import alignkit
from alignkit import Group, Policy, Prompt, RewardSource, write_groups
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Tables = dict[str, dict[str, Any]]

PAIRS = [Group(Prompt(text=f"say {a}{b}"), (a * 3, b * 3), ranks=(0, 1)) for a in "abcd" for b in "xyz"]
PROMPTS = [group.prompt for group in PAIRS]
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONLINE: dict[str, Any] = {"learning_rate": 1e-2, "iterations": 3, "batch_size": 4, "group_size": 2, "minibatch_size": 4}
DPO_OPTIONS: dict[str, Any] = {"learning_rate": 1e-2, "minibatch_size": 4, "beta": 0.3}


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that differs from response to response, even of a model that says nothing sensible."""
    return [sum(ord(letter) % 13 for letter in text) / 50 for text in completions]


class Letters(RewardSource[Any]):
    """The same as a class."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [list(letters([], list(group.responses))) for group in groups]


def write_material(folder: Path) -> Path:
    """The model and the rankings."""
    write_tiny_llama(folder / "model")
    write_groups(folder / "pairs.jsonl", PAIRS)
    return folder


def dpo_tables(folder: Path) -> Tables:
    """A recipe on all prompts, with DPO."""
    return {
        "run": {"seed": 3, "holdout": 0.0, "device": "cpu"},
        "policy": {"model": str(folder / "model")},
        "preferences": {"path": str(folder / "pairs.jsonl")},
        "sampling": {"max_tokens": 6},
        "optimizer": {"plugin": "dpo", "learning_rate": 1e-2, "minibatch_size": 4, "for": {"ppo": {"n_epochs": 2}}},
        "eval": {"count": 2},
    }


def online_tables(folder: Path, plugin: str) -> Tables:
    """A recipe on the same prompts for an algorithm on rollouts."""
    tables = dpo_tables(folder)
    tables["prompts"] = tables.pop("preferences")
    return tables | {"optimizer": {"plugin": plugin, **ONLINE}}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def saved(policy: Policy[Any], folder: Path) -> bytes:
    policy.save(folder)
    return weights(folder)


def a_policy(folder: Path) -> HFPolicy:
    return HFPolicy(HFOptions(model=str(folder / "model")), alignkit.make_context(seed=3, device="cpu"))
