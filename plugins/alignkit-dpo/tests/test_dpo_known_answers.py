"""Problems whose solution is known in closed form, on a policy that is a table of logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.ipo import IPO
from alignkit_dpo.options import DPOOptions, IPOOptions
from table_policy import (
    REFERENCE,
    WEIGHTS,
    TablePolicy,
    batch_of,
    minimise,
    population_of_pairs,
    population_of_rankings,
)


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


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_reaches_the_optimum_of_its_own_objective(beta: float) -> None:
    # arXiv:2310.12036, eq. 7 with the identity: reference * exp(P(better than one of all, drawn evenly) / beta).
    policy = TablePolicy(REFERENCE)
    minimise(IPO(IPOOptions(beta=beta), policy=policy), population_of_pairs(), steps=200)
    wins = [sum(w / (w + other) for other in WEIGHTS) / len(WEIGHTS) for w in WEIGHTS]
    unnormalised = [p * math.exp(win / beta) for p, win in zip(REFERENCE, wins, strict=True)]
    expected = torch.tensor([u / sum(unnormalised) for u in unnormalised], dtype=torch.float64)
    distance = (policy.logits.detach().softmax(-1) - expected).abs().sum() / 2
    assert distance < 1e-4
