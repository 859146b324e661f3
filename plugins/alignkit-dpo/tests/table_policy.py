"""A policy that is a table of logits, batches of token ids for it, and a minimiser: losses as arithmetic on paper."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignkit import Group, GroupBatch, Policy, PolicyOutput, Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Optimizer

WEIGHTS = (1, 2, 5)  # exp(reward) of the three responses
REFERENCE = (0.5, 0.2, 0.3)


class TablePolicy(Policy[Any]):
    """One distribution over V tokens, the same at every position of every response."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.table = nn.Module()
        self.table.logits = nn.Parameter(torch.tensor(probabilities, dtype=torch.float64).log())

    def forward(
        self, batch: GroupBatch, *, entropy: bool = False, hidden: bool = False, kl_to: Policy[Any] | None = None
    ) -> PolicyOutput:
        return PolicyOutput(self.logits.log_softmax(-1)[batch.response_ids])

    @property
    def logits(self) -> nn.Parameter:
        logits = self.table.logits
        assert isinstance(logits, nn.Parameter)
        return logits

    def reference(self) -> TablePolicy:
        frozen = copy.deepcopy(self)
        frozen.table.requires_grad_(False)
        return frozen

    def modules(self) -> dict[str, nn.Module]:
        return {"policy": self.table}

    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        raise NotImplementedError

    def generate(self, *args: Any, **kwargs: Any) -> GroupBatch:
        raise NotImplementedError

    @classmethod
    def load(cls, *args: Any) -> TablePolicy:
        raise NotImplementedError

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        raise NotImplementedError

    def save(self, path: object) -> None:
        raise NotImplementedError


def batch_of(
    responses: Sequence[Sequence[Sequence[int]]],
    ranks: Sequence[tuple[int, ...]] | None = None,
    *,
    labels: Sequence[tuple[bool, ...]] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
) -> GroupBatch:
    """Responses as token ids, ranked or labelled; each prompt one token where none are given."""
    records = [
        Group(
            Prompt(text="p"),
            tuple(map(str, rows)),
            ranks=None if ranks is None else ranks[number],
            labels=None if labels is None else labels[number],
        )
        for number, rows in enumerate(responses)
    ]
    return GroupBatch.from_ids(prompts or [[0]] * len(records), responses, records)


def population_of_pairs() -> GroupBatch:
    """Every pair 42 times, the better one winning as often as Bradley-Terry with rewards log(WEIGHTS) says."""
    pairs, orders = [], []
    for i in range(3):
        for j in range(i):
            wins = 42 * WEIGHTS[i] // (WEIGHTS[i] + WEIGHTS[j])
            pairs += [[[i], [j]]] * 42
            orders += [(0, 1)] * wins + [(1, 0)] * (42 - wins)
    return batch_of(pairs, orders)


def population_of_rankings() -> GroupBatch:
    """336 rankings of all three, each order as often as Plackett-Luce with rewards log(WEIGHTS) says."""
    rankings, orders = [], []
    for i in range(3):
        for j in {0, 1, 2} - {i}:
            rest = sum(WEIGHTS) - WEIGHTS[i]
            count = 336 * WEIGHTS[i] * WEIGHTS[j] // (sum(WEIGHTS) * rest)
            rankings += [[[i], [j], [3 - i - j]]] * count
            orders += [(0, 1, 2)] * count
    assert len(orders) == 336
    return batch_of(rankings, orders)


def minimise(optimizer: Optimizer[Any], batch: GroupBatch, steps: int = 60) -> None:
    with torch.no_grad():
        prepared = optimizer.prepare(batch)
        optimizer.begin_step(prepared)
    parameters = [p for module in optimizer.modules().values() for p in module.parameters()]
    # at the minimum, where the loss is flat, 1e-16 of it are 1e-8 of a parameter
    tolerances = {"tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    lbfgs = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", **tolerances)

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss, _ = optimizer.loss(prepared)
        loss.backward()
        return loss

    lbfgs.step(closure)  # type: ignore[no-untyped-call]
