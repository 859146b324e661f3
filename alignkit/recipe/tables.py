"""The tables of a recipe: their roles, default plugins or options, and how they merge."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval, Lt

from alignkit.errors import InputError
from alignkit.options import (
    Config,
    Count,
    Fraction,
    MetricsSpec,
    Natural,
    NonNegative,
    PolicySpec,
    PreferencesSpec,
    RewardSpec,
    Sampling,
    has_nvidia_driver,
)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Config):
    """The table `run`: the run as a whole."""

    noise: ClassVar[frozenset[str]] = frozenset({"device", "threads", "shard", "metrics", "cache", "plugins"})

    seed: Natural = 0
    """Seed of everything random."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda, cuda:1 or mps."""
    threads: Natural = 0
    """CPU threads of torch; 0 lets torch choose."""
    shard: Literal["none", "fsdp2"] = "none"
    """How several processes share the weights in training: each has all of them (none), or a part (fsdp2), with the
    gradients and AdamW's moments."""
    holdout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the prompts that no stage trains on, to measure on; a hash of each prompt chooses, whatever the seed."""
    rounds: Count = 1
    """Rounds of an algorithm that learns from preferences. From the second on, each round samples the current policy,
    has [reward] (or a [preferences] plugin that samples) rank the responses, and trains on."""
    round_samples: Annotated[int, Ge(2)] = 4
    """Responses per prompt that [reward] ranks in a round."""
    round_reference: Literal["kept", "moved"] = "kept"
    """Reference of later rounds: the policy at the start of alignment (kept) or of the round (moved)."""
    cache: str = "auto"
    """Folder for results that later runs reuse (log-probabilities of references); empty turns it off. auto: `alignkit`
    in $XDG_CACHE_HOME or ~/.cache."""
    metrics: tuple[MetricsSpec, ...] = ()
    """Metric sinks, in addition to metrics.jsonl: `[{plugin = "name", option = value}]`."""
    plugins: tuple[str, ...] = ()
    """Python files with plugins that are not installed (`--plugin FILE`); a changed file counts as a changed recipe."""

    def check(self) -> None:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", self.device):
            raise InputError(f"no device {self.device!r}", where="device", fix="use auto, cpu, cuda, cuda:1 or mps")
        missing = {"cuda": not has_nvidia_driver(), "mps": sys.platform != "darwin"}
        if missing.get(self.device.partition(":")[0]):
            raise InputError(f"this machine has no {self.device}", where="device", fix="use auto or cpu")

    @property
    def cache_folder(self) -> Path | None:
        """The folder that `cache` stands for."""
        if self.cache != "auto":
            return Path(self.cache).expanduser() if self.cache else None
        return default_cache()


def default_cache() -> Path:
    """The folder for what later runs reuse, unless a recipe names another one."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignkit"


@dataclass(frozen=True, kw_only=True)
class CandidateOptions(Config):
    """The table `candidates`: the responses that labellers (judges, people, rewards) rank."""

    count: Annotated[int, Interval(ge=2, le=9)] | None = None
    """Responses per prompt, 2 to 9 (`--sample K`); none lets the labeller choose."""
    policies: tuple[PolicySpec, ...] = ()
    """Other policies to sample from in turn with the run's own: `[{plugin = "hf", model = "..."}]`."""
    temperatures: tuple[NonNegative, ...] = ()
    """Temperatures to sample at in turn; default: the temperature of [sampling]."""
    near_duplicate: Fraction = 0.0
    """Drop a response if the Jaccard index of its word trigrams with an earlier one is at least this; 0 drops none."""
    spare: Natural = 0
    """Extra responses, sampled to replace near-duplicates."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("near_duplicate above 0", self.near_duplicate > 0, "spare")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Config):
    """The table `eval`: what the trained policy is measured on, and against."""

    prompts: PreferencesSpec | None = None
    """Preference source of the prompts to measure on; default: the run's held-out prompts."""
    rewards: Mapping[str, RewardSpec] = field(default_factory=dict)
    """More reward sources to report, by name: `{gold = {plugin = "function", function = "m:f"}}`."""
    count: Count = 256
    """Maximum number of prompts."""
    samples: Count = 1
    """Responses sampled per prompt."""
    best_of: Count = 1
    """Above 1: also measure both policies as best of n, keeping of n responses the one that [reward] scores highest
    (arXiv:2009.01325). Its KL to the sampled policy is at most log n - (n - 1) / n nats."""
    texts: PreferencesSpec | None = None
    """Preference source of texts that nothing trains on: their perplexity before and after shows what is forgotten."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval (`--tasks A,B`), by name or as a YAML file; both policies run them. Needs
    `alignkit-report[tasks]`."""
    against: str = "sft"
    """What to compare the policy with: `sft` (the start of alignment), `base` (before SFT) or a model folder. Where the
    run directory has no aligned policy, the recipe's own is compared with that folder."""

    def check(self) -> None:
        super().check()
        if self.against not in ("sft", "base") and not Path(self.against).is_dir():
            raise InputError(f"no folder {self.against!r}", where="against", fix="use sft, base or a model's folder")
        if self.tasks and not (find_spec("lm_eval") and find_spec("alignkit_report")):
            raise InputError("needs lm-eval", where="tasks", fix="pip install 'alignkit-report[tasks]'")


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
    """Merges tables; later ones win, sub-tables merge key by key. An empty sub-table, or one with a plugin, replaces
    the earlier one."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            joins = isinstance(value, Mapping) and value and isinstance(below, Mapping) and "plugin" not in value
            result[key] = merged(below, value) if joins else value  # type: ignore[arg-type]
    return result


REWARD_TRAINING = "reward.train"
"""The pseudo-table of the Optimizer that trains the reward."""
