"""A registry of tiny parts for tests of the pipeline: an algorithm of each feed, a labeller, and a reporter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from alignkit.algorithms import OnlineAlgorithm, OnlineOptions
from alignkit.interfaces import Feed, Optimizer, PreferenceSource
from alignkit.options import Config, Count, PtxOptions, TrainingOptions
from alignkit.plugins import Registration, Registry
from alignkit.records import Group, Prompt
from alignkit.runs.reporting import Reporter
from alignkit.testing import TinyOptions, TinyPolicy, TinyReward, TinyRewardOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics
    from alignkit.interfaces import Ask

PROMPTS = [f"say {a}{b}" for a in "abcde" for b in "abcd"]


class Likelihood(Optimizer[TrainingOptions]):
    """Maximum likelihood of the first response."""

    consumes = Feed.DEMONSTRATIONS

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        return -batch.token_mean(self.policy.forward(batch).logprobs), {}


class Margin(Likelihood):
    """Likelihood of the better response over the worse."""

    consumes = Feed.RANKINGS

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        assert batch.ranks is not None
        sign = 1.0 - 2.0 * batch.ranks.clamp(max=1)
        logprobs = batch.sum_by_response(self.policy.forward(batch).logprobs)
        return -batch.response_mean(torch.nn.functional.logsigmoid(sign * (logprobs + 20))), {}


@dataclass(frozen=True, kw_only=True)
class ReinforceOptions(PtxOptions, OnlineOptions):
    """No further options."""


class Reinforce(OnlineAlgorithm[ReinforceOptions]):
    """Reward-weighted likelihood."""

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        assert batch.rewards is not None
        advantages = (batch.rewards - 0.1)[batch.response_index]
        return -batch.token_mean(advantages * self.policy.forward(batch).logprobs), {}


@dataclass(frozen=True, kw_only=True)
class LettersOptions(Config):
    """Options of `letters`."""

    k: Count = 1
    """Responses a prompt; more than one are sampled and ranked by how many an a they have."""


class Letters(PreferenceSource[LettersOptions]):
    """Prompts with a fixed answer, or rankings of what the policy says."""

    @classmethod
    def options_of_file(cls, path: Path, columns: Mapping[str, str]) -> Mapping[str, Any]:
        return {}

    def preferences(self, ask: Ask) -> Iterator[Group]:
        if self.config.k == 1:
            yield from (Group(Prompt(text=text), ("aaa",)) for text in PROMPTS)
            return
        for group in ask(ask.prompts, self.config.k):
            yield replace(group, scores=tuple(float(r.count("a")) for r in group.responses)).ranked_by_scores()


class Recorder(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str) -> None:
        self.stages.append(name)


def tiny_registry() -> Registry:
    entries = [
        ("policy", "hf", TinyPolicy, TinyOptions),
        ("optimizer", "sft", Likelihood, TrainingOptions),
        ("optimizer", "margin", Margin, TrainingOptions),
        ("optimizer", "reinforce", Reinforce, ReinforceOptions),
        ("preferences", "letters", Letters, LettersOptions),
        ("reward", "tiny", TinyReward, TinyRewardOptions),
    ]
    return Registry([Registration(role, name, target, config, "tests") for role, name, target, config in entries])
