"""Options of a recipe's tables that name no plugin: the run, candidates for labellers, the evaluation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

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
)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Config):
    """The recipe's table `run`: what concerns the run as a whole."""

    seed: Natural = 0
    """Everything random follows from it."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda, cuda:1 or mps."""
    threads: Natural = 0
    """CPU threads of torch; 0 leaves the number to torch."""
    holdout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the prompts that is never trained on and that `eval` uses; chosen by a digest of the prompt."""
    rounds: Count = 1
    """Rounds of an algorithm that learns from recorded preferences. From the second on, the policy as it is then is
    sampled on the prompts, the source of [reward] (or a [preferences] plugin that samples) ranks what it says, and the
    algorithm goes on from there."""
    round_samples: Annotated[int, Ge(2)] = 4
    """Responses to each prompt that [reward] ranks in a round."""
    round_reference: Literal["kept", "moved"] = "kept"
    """The reference of later rounds: the policy that alignment started from, or the one that the round starts from."""
    cache: str = "auto"
    """Folder of results that are kept from run to run (log-probabilities of references); empty keeps none. auto:
    `alignkit` in $XDG_CACHE_HOME, or in ~/.cache."""
    metrics: tuple[MetricsSpec, ...] = ()
    """Further receivers of the metrics, beside metrics.jsonl: `[{plugin = "name", option = value}]`."""

    def check(self) -> None:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", self.device):
            raise InputError(f"no device {self.device!r}", where="device", fix="auto, cpu, cuda, cuda:1 or mps")

    @property
    def cache_folder(self) -> Path | None:
        """The folder that `cache` means."""
        if self.cache != "auto":
            return Path(self.cache).expanduser() if self.cache else None
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignkit"


@dataclass(frozen=True, kw_only=True)
class CandidateOptions(Config):
    """The recipe's table `candidates`: the responses that labellers (judges, people, rewards) are given to rank."""

    count: Annotated[int, Interval(ge=2, le=9)] | None = None
    """Responses to each prompt, 2 to 9 (`--sample K`); none leaves it to the labeller."""
    policies: tuple[PolicySpec, ...] = ()
    """Policies to sample from beside the run's own, in turn: `[{plugin = "hf", model = "..."}]`."""
    temperatures: tuple[NonNegative, ...] = ()
    """Temperatures to sample at, in turn; empty takes that of [sampling]."""
    near_duplicate: Fraction = 0.0
    """Of responses whose runs of three words are as alike as this (Jaccard index), the first is kept; 0 keeps all."""
    spare: Natural = 0
    """Responses sampled beyond the count, to take the places of near-duplicates."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("near_duplicate above 0", self.near_duplicate > 0, "spare")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Config):
    """The recipe's table `eval`: what the trained policy is measured on, and against."""

    prompts: PreferencesSpec | None = None
    """Where unseen prompts come from, as a preference source; left out, the held-out prompts of the run."""
    rewards: Mapping[str, RewardSpec] = field(default_factory=dict)
    """Reward sources to report beside the run's own, by name: `{gold = {plugin = "function", function = "m:f"}}`."""
    count: Count = 256
    """At most this many prompts."""
    samples: Count = 1
    """Responses sampled for each prompt."""
    best_of: Count = 1
    """Above 1, both policies are also measured as best of n: of so many responses for each one, the one that [reward]
    scores highest (arXiv:2009.01325). Its KL to the policy it samples from is at most log n - (n - 1) / n nats."""
    against: str = "sft"
    """What the policy is held against: `sft` (where alignment started), `base` (before it), or a model's folder."""
