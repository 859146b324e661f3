"""Problems whose solution is known in closed form, on a policy that is a table of logits."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.ipo import IPO
from alignkit_dpo.options import DPOOptions, IPOOptions
from torch import nn

from alignkit import Group, GroupBatch, Policy, PolicyOutput, Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Optimizer, Scorer

WEIGHTS = (1, 2, 5)  # exp(reward) of the three responses
REFERENCE = (0.5, 0.2, 0.3)


class TablePolicy(Policy[Any]):
    """One distribution over V tokens, the same at every position of every response."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.table = nn.Module()
        self.table.logits = nn.Parameter(torch.tensor(probabilities, dtype=torch.float64).log())

    def forward(
        self, batch: GroupBatch, *, entropy: bool = False, hidden: bool = False, values: bool = False
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

    def add_value_head(self) -> None:
        raise NotImplementedError

    def scorer(self) -> Scorer:
        raise NotImplementedError

    @classmethod
    def load_scorer(cls, *args: Any) -> Scorer:
        raise NotImplementedError

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        raise NotImplementedError

    def save(self, path: object) -> None:
        raise NotImplementedError


def batch_of(responses: Sequence[Sequence[Sequence[int]]], ranks: Sequence[tuple[int, ...]]) -> GroupBatch:
    groups = [
        Group(Prompt(text="p"), tuple(map(str, rows)), ranks=order)
        for rows, order in zip(responses, ranks, strict=True)
    ]
    return GroupBatch.from_ids([[0]] * len(groups), responses, groups)


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
    prepared = optimizer.prepare(batch)
    parameters = [p for module in optimizer.modules().values() for p in module.parameters()]
    lbfgs = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss, _ = optimizer.loss(prepared)
        loss.backward()
        return loss

    lbfgs.step(closure)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("population", [population_of_pairs, population_of_rankings])
def test_dpo_reaches_the_optimum_of_the_regularised_objective(population: Any, beta: float) -> None:
    policy = TablePolicy(REFERENCE)
    minimise(DPO(DPOOptions(beta=beta), policy=policy), population())
    # arXiv:2305.18290, eq. 4: the optimum is proportional to reference * exp(reward / beta).
    unnormalised = [p * w ** (1 / beta) for p, w in zip(REFERENCE, WEIGHTS, strict=True)]
    expected = torch.tensor([u / sum(unnormalised) for u in unnormalised], dtype=torch.float64)
    distance = (policy.logits.detach().softmax(-1) - expected).abs().sum() / 2
    assert distance < 1e-4


def test_dpo_label_smoothing_undoes_flipped_labels() -> None:
    # One pair, always recorded as won by the second: with label_smoothing e the optimum has P(second wins) = 1 - e.
    policy = TablePolicy(REFERENCE)
    minimise(DPO(DPOOptions(beta=0.5, label_smoothing=0.2), policy=policy), batch_of([[[0], [1]]], [(1, 0)]))
    logits = policy.logits.detach()
    reference = torch.tensor(REFERENCE).log()
    gap = 0.5 * ((logits[1] - reference[1]) - (logits[0] - reference[0]))
    assert gap.sigmoid().item() == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_leads_by_its_target_margin(beta: float) -> None:
    # The chosen response has two tokens, the rejected one three: the lead is of means over tokens.
    policy = TablePolicy(REFERENCE)
    minimise(IPO(IPOOptions(beta=beta), policy=policy), batch_of([[[1, 1], [0, 0, 2]]], [(0, 1)]), steps=200)
    gain = policy.logits.detach().log_softmax(-1) - torch.tensor(REFERENCE, dtype=torch.float64).log()
    lead = (gain[1] + gain[1]) / 2 - (gain[0] + gain[0] + gain[2]) / 3
    assert lead.item() == pytest.approx(1 / (2 * beta), abs=1e-4)
