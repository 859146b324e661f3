"""The contract suite, and what the base promises to every member of the family."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.ipo import IPO

from alignkit import Feed
from alignkit.algorithms.options import PreferenceOptions
from alignkit.algorithms.rankings import PreferenceLoss, ResponseLogprobs
from alignkit.testing import ELEMENTARY, OptimizerContract, TinyPolicy, assert_near, near, terms_of_network
from alignkit.testing.material import groups_for, nudge


class TestDPOContract(OptimizerContract):
    component = DPO
    options = {"label_smoothing": 0.1}  # noqa: RUF012


class TestIPOContract(OptimizerContract):
    component = IPO


class WithoutReference(PreferenceLoss[PreferenceOptions]):
    """A member of the family that asks no reference, as SimPO or ORPO."""

    uses_reference = False

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> torch.Tensor:
        return rejected.logprobs / rejected.lengths - chosen.logprobs / chosen.lengths

    def implicit_rewards(self, responses: ResponseLogprobs) -> torch.Tensor:
        return responses.logprobs / responses.lengths


class TestWithoutReferenceContract(OptimizerContract):
    component = WithoutReference


def test_first_loss_and_metrics_by_hand() -> None:
    # Policy = reference: all gaps are 0, every loss is log 2, and equal rewards count as half right.
    optimizer = DPO(policy=TinyPolicy())
    batch = optimizer.prepare(optimizer.policy.encode(groups_for(Feed.RANKINGS)))
    loss, metrics = optimizer.loss(batch)
    assert loss.item() == near(math.log(2), terms=2 * ELEMENTARY)
    assert {name: float(metrics[name]) for name in ("accuracy", "margin", "reference_kl")} == {
        "accuracy": 0.5, "margin": 0.0, "reference_kl": 0.0,
    }  # fmt: skip
    ipo, _ = IPO(policy=TinyPolicy()).loss(batch)
    assert ipo.item() == near(25.0, terms=8)  # (0 - 1 / (2 * 0.1))^2


def test_metrics_of_one_pair_by_hand() -> None:
    policy = TinyPolicy()
    optimizer = DPO(policy=policy)
    record = replace(groups_for(Feed.RANKINGS)[0], ranks=(1, 0))
    batch = optimizer.prepare(policy.encode([record]))
    nudge(policy.modules())
    worse, better = batch.sum_by_response(policy.forward(batch).logprobs).tolist()
    ref_worse, ref_better = batch.sum_by_response(optimizer.reference.forward(batch).logprobs).tolist()  # type: ignore[union-attr]
    loss, metrics = optimizer.loss(batch)
    chosen, rejected = 0.1 * (better - ref_better), 0.1 * (worse - ref_worse)
    expected = {
        "margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logprobs": better,
        "rejected_logprobs": worse,
        "accuracy": float(chosen > rejected),
        "reference_kl": (ref_better - better + ref_worse - worse) / 2,
    }
    assert {name: float(value) for name, value in metrics.items()} == near(expected, terms=batch.num_tokens)
    expected_loss = math.log(1 + math.exp(rejected - chosen))
    assert loss.item() == near(expected_loss, terms=batch.num_tokens, scale=0.1 * abs(worse))


def test_groups_without_an_order_are_dropped_and_counted() -> None:
    optimizer = DPO(policy=TinyPolicy())
    given = groups_for(Feed.RANKINGS)
    tied = replace(given[1], ranks=(0, 0, 0))
    kept = optimizer.prepare(optimizer.policy.encode([given[0], tied]))
    assert [group.prompt for group in kept.groups] == [given[0].prompt]
    nothing = optimizer.prepare(optimizer.policy.encode([tied]))
    assert nothing.num_groups == 0
    assert optimizer.batch_metrics == {"groups_without_order": 2.0}
    joined: Any = type(kept).concat([nothing, kept])
    assert torch.equal(joined.ref_logprobs, kept.ref_logprobs)


def test_reference_is_the_policy_at_the_start() -> None:
    optimizer, start = DPO(policy=TinyPolicy()), TinyPolicy()
    nudge(optimizer.modules())
    batch = optimizer.policy.encode(groups_for(Feed.RANKINGS))
    found, terms = optimizer.prepare(batch).ref_logprobs, terms_of_network(start.modules(), batch.num_tokens)
    assert found is not None
    assert_near(found, start.forward(batch).logprobs.detach(), terms=terms)


def test_loss_before_prepare_says_so() -> None:
    optimizer = DPO(policy=TinyPolicy())
    with pytest.raises(ValueError, match="prepare"):
        optimizer.loss(optimizer.policy.encode(groups_for(Feed.RANKINGS)))
