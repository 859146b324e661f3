"""Policies and scorers that look up every figure by token id, so that expected values can be computed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignkit.interfaces import HasValues, Policy, Scorer
from alignkit.outputs import PolicyOutput, ScorerOutput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.components import Context
    from alignkit.options import Sampling
    from alignkit.records import Group, Prompt


class Table(nn.Module):
    """A figure for every token id."""

    def __init__(self, figures: Sequence[float]) -> None:
        super().__init__()
        self.figures = nn.Parameter(torch.tensor(figures))

    def set(self, figures: Sequence[float]) -> None:
        self.figures.data = torch.tensor(figures)


class _NoText:
    """Methods that tables can't support."""

    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        raise NotImplementedError

    def save(self, path: Path) -> None:
        raise NotImplementedError

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        raise NotImplementedError

    @classmethod
    def load_scorer(cls, path: Path, context: Context, *, append_end: bool | None = None) -> Scorer:
        raise NotImplementedError


class TableScorer(_NoText, Scorer):
    """Values by token id, and scores by the id of a response's last token."""

    def __init__(self, values: Sequence[float], scores: Mapping[int, float]) -> None:
        self.values = Table(values)
        self._scores = dict(scores)

    def forward(self, batch: GroupBatch) -> ScorerOutput:
        lasts = batch.response_ids[batch.last_token].tolist()
        scores = torch.tensor([self._scores[last] for last in lasts])
        return ScorerOutput(self.values.figures[batch.response_ids], scores)

    def modules(self) -> dict[str, nn.Module]:
        return {"scorer": self.values}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        self.bound = dict(modules)


class TablePolicy(_NoText, Policy[Any], HasValues):
    """Log-probabilities and values by token id; its entropy is the id.

    Args:
        logprobs, reference: of every token id, under the policy and its reference.
        values: of every token id, once a value head is added.
        critic: the result of `scorer`.
    """

    def __init__(
        self,
        logprobs: Sequence[float],
        reference: Sequence[float],
        values: Sequence[float] | None = None,
        critic: Scorer | None = None,
    ) -> None:
        super().__init__()
        self.logprobs, self.values = Table(logprobs), Table(values or [0.0] * len(logprobs))
        self._reference, self._critic = reference, critic
        self.has_value_head = False

    def forward(
        self,
        batch: GroupBatch,
        *,
        entropy: bool = False,
        hidden: bool = False,
        values: bool = False,
        kl_to: Policy[Any] | None = None,
    ) -> PolicyOutput:
        assert (self.has_value_head or not values) and kl_to is None
        return PolicyOutput(
            logprobs=self.logprobs.figures[batch.response_ids],
            entropy=batch.response_ids.float() if entropy else None,
            values=self.values.figures[batch.response_ids] if values else None,
        )

    @classmethod
    def load(cls, path: Path, config: Any, context: Context) -> TablePolicy:
        raise NotImplementedError

    def reference(self) -> TablePolicy:
        return TablePolicy(self._reference, self._reference)

    def add_value_head(self) -> None:
        self.has_value_head = True

    def scorer(self) -> Scorer:
        assert self._critic is not None
        return self._critic

    def modules(self) -> dict[str, nn.Module]:
        return {"policy": self.logprobs}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        self.bound = dict(modules)
