"""The contract suite for the whole family, with options away from their defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from alignkit_dpo.apo import APODown, APOZero
from alignkit_dpo.beta_dpo import BetaDPO
from alignkit_dpo.dpo import DPO, DPOP, RDPO, RobustDPO
from alignkit_dpo.ipo import IPO, SPPO
from alignkit_dpo.kto import KTO
from alignkit_dpo.reference_free import CPO, ORPO, SimPO
from alignkit_dpo.slic import SLiC
from alignkit_dpo.whole_rankings import EXO, NCA, ListDPO

from alignkit import Feed, Group, InputError
from alignkit.testing import OptimizerContract, TinyPolicy, near, terms_of_network
from alignkit.testing.material import groups_for, nudge

MEMBERS: list[tuple[type[Any], dict[str, Any]]] = [
    (DPO, {"f_divergence": "forward-kl", "sft_weight": 0.3}),
    (DPO, {"f_divergence": "js"}),
    (DPO, {"f_divergence": "alpha", "f_alpha": 0.3}),
    (RobustDPO, {"label_smoothing": 0.3}),
    (DPOP, {"beta": 0.3, "penalty": 5.0, "sft_weight": 0.1}),
    (RDPO, {"length_weight": 0.1}),
    (BetaDPO, {"beta": 0.5, "beta_gain": 2.0, "momentum": 0.5}),
    (IPO, {"f_divergence": "alpha"}),
    (SPPO, {"beta": 0.1}),
    (SLiC, {"beta": 0.05}),
    (SLiC, {"beta": 0.05, "normalized": False, "sft_weight": 0.5}),
    (APOZero, {"sft_weight": 0.1}),
    (APODown, {}),
    (EXO, {"label_smoothing": 0.1}),
    (NCA, {"beta": 0.2}),
    (ListDPO, {"sft_weight": 0.2}),
    (CPO, {}),
    (SimPO, {"margin": 0.5}),
    (ORPO, {"beta": 0.5}),
    (KTO, {"beta": 0.4, "desirable_weight": 1.3}),
]

for number, (member, given) in enumerate(MEMBERS):
    name = f"Test{member.__name__}{number}"
    globals()[name] = type(name, (OptimizerContract,), {"component": member, "options": given})


class TestKTOOnRankings(OptimizerContract):
    component = KTO

    def batch(self, optimizer: Any) -> Any:
        return optimizer.policy.encode(groups_for(Feed.RANKINGS))


@pytest.mark.parametrize("member", [BetaDPO, KTO])
def test_what_is_of_the_step_does_not_depend_on_the_micro_batch(member: type[Any]) -> None:
    groups = groups_for(member.consumes)
    one = member(policy=TinyPolicy())
    batch = one.prepare(one.policy.encode(groups))
    nudge(one.modules(), size=0.3)
    with torch.no_grad():
        one.begin_step(batch)
    whole, _ = one.loss(batch)
    parts = [part.replace(totals=batch.counts()) for part in (batch.select([0, 1]), batch.select([2, 3, 4]))]
    terms = terms_of_network(one.modules(), batch.num_tokens)
    assert sum(float(one.loss(part)[0].detach()) for part in parts) == near(float(whole.detach()), terms=terms)
    before = dict(one.batch_metrics)
    with torch.no_grad():
        one.begin_step(parts[0].replace(totals=None))
    assert one.batch_metrics != before


def test_kto_takes_rankings_as_labels() -> None:
    optimizer = KTO(policy=TinyPolicy())
    given = groups_for(Feed.RANKINGS)
    # (1, 0, 1): one beats two; (0, 2, 1, 3): two beat more than beat them; (2, 0, 1): the last is left out.
    odd = replace(given[1], ranks=(2, 0, 1))
    tied = replace(given[4], ranks=(0, 0))
    batch = optimizer.prepare(optimizer.policy.encode([given[1], given[3], odd, tied, given[0]]))
    assert batch.labels is not None
    assert batch.labels.tolist() == [False, True, False, True, False, True, False, False, True, True, False]
    assert [group.responses for group in batch.groups][2] == (odd.responses[0], odd.responses[1])
    assert batch.num_groups == 4
    assert optimizer.batch_metrics == {"responses_without_label": 3.0}


def test_kto_prefers_labels_and_takes_mixed_records() -> None:
    optimizer = KTO(policy=TinyPolicy())
    ranked, other, *_ = groups_for(Feed.RANKINGS)
    both = replace(ranked, labels=(False, True))
    labelled = Group(other.prompt, ("ran",), labels=(True,))
    batch = optimizer.prepare(optimizer.policy.encode([both, labelled, ranked]))
    assert batch.labels is not None
    assert batch.labels.tolist() == [False, True, True, True, False]
    with pytest.raises(InputError, match="neither labels nor ranks"):
        optimizer.prepare(optimizer.policy.encode([Group(other.prompt, ("ran",))]))


def test_kto_of_nothing_but_ties_is_empty() -> None:
    optimizer = KTO(policy=TinyPolicy())
    tied = replace(groups_for(Feed.RANKINGS)[0], ranks=(0, 0))
    nothing = optimizer.prepare(optimizer.policy.encode([tied]))
    assert nothing.num_groups == 0
    kept = optimizer.prepare(optimizer.policy.encode(groups_for(Feed.RANKINGS)[:1]))
    assert type(kept).concat([nothing, kept]).ref_logprobs is not None


def test_kto_says_what_comes_before_its_loss() -> None:
    optimizer = KTO(policy=TinyPolicy())
    batch = optimizer.prepare(optimizer.policy.encode(groups_for(Feed.LABELS)))
    with pytest.raises(ValueError, match="begin_step"):
        optimizer.loss(batch)


def test_algorithms_without_a_reference_keep_none() -> None:
    for member, options in ((CPO, {}), (SimPO, {}), (ORPO, {}), (SLiC, {"normalized": False})):
        assert member(member.Config(**options), policy=TinyPolicy()).reference is None  # type: ignore[attr-defined]
    assert SLiC(policy=TinyPolicy()).reference is not None
