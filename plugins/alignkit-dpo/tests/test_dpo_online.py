"""Online DPO: which rollouts are compared and at what loss, by hand; its known answer; its state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.online_dpo import OnlineDPO
from table_policy import WEIGHTS, TablePolicy, batch_of

from alignkit.checking import OptionsError
from alignkit.options import Sampling
from alignkit.plugins import read_component, registry
from alignkit.testing import OptimizerContract, TinyPolicy, near, terms_of_network
from alignkit.testing.known_answer import (
    REWARD_OF_TOKEN,
    ScoreOf,
    distance,
    learn,
    policy_of_four_tokens,
    token_distribution,
)
from alignkit.testing.material import backward, gradients, nudge, prompts
from alignkit.testing.runs import assert_goes_on_bit_for_bit, online_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.batch import GroupBatch

REFERENCE = (0.5, 0.2, 0.3)
POLICY = (0.3, 0.6, 0.1)
RESPONSES = [[[1, 1, 2], [0], [2, 0], [1], [0, 2, 2]], [[0, 1], [2, 2]], [[0, 0], [1, 2, 1, 1]]]
SCORES = [2.0, 5.0, -1.0, 5.0, -1.0, 0.7, 0.7, 0.1, 0.3]
A, B, C, D, E, _, _, F, G = (
    sum(math.log(POLICY[token] / REFERENCE[token]) for token in tokens) for rows in RESPONSES for tokens in rows
)
BETA = 0.3


class TestOnlineDPO(OptimizerContract):
    component = OnlineDPO


class TestOnlineDPOOnAllPairs(OptimizerContract):
    component = OnlineDPO
    options: ClassVar[Mapping[str, Any]] = {
        "group_size": 4,
        "pairs": "all",
        "sft_weight": 0.2,
        "label_smoothing": 0.1,
        "f_divergence": "js",
        "kl_controller": "adaptive",
        "missing_eos_penalty": 0.3,
    }


def lead_loss(*leads: float, beta: float = BETA) -> float:
    return sum(math.log(1 + math.exp(-beta * lead)) for lead in leads) / len(leads)


def make(**options: Any) -> OnlineDPO:
    """The policy has moved away from its reference."""
    policy = TablePolicy(REFERENCE)
    optimizer = OnlineDPO(OnlineDPO.Config(**{"beta": BETA, **options}), policy=policy)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor(POLICY, dtype=torch.float64).log())
    return optimizer


def rollouts(scores: Sequence[float] = SCORES) -> GroupBatch:
    batch = batch_of(RESPONSES)
    logprobs = torch.tensor(POLICY, dtype=torch.float64).log()[batch.response_ids]
    return batch.replace(rewards=torch.tensor(scores), logprobs=logprobs)


def loss_of(optimizer: OnlineDPO, batch: GroupBatch) -> float:
    with torch.no_grad():
        return float(optimizer.loss(optimizer.prepare(batch))[0])


def test_the_first_best_is_compared_with_the_first_worst() -> None:
    assert loss_of(make(), rollouts()) == pytest.approx((lead_loss(B - C) + lead_loss(G - F)) / 2, abs=1e-12)


def test_all_pairs_of_different_scores() -> None:
    first = lead_loss(B - A, D - A, A - C, A - E, B - C, B - E, D - C, D - E)
    expected = (first + lead_loss(G - F)) / 2
    assert loss_of(make(pairs="all", group_size=5), rollouts()) == pytest.approx(expected, abs=1e-12)


def test_a_response_that_was_cut_off_may_lose_its_place() -> None:
    """B scores 5 - 4.5 then, which is neither best nor worst."""
    finished = torch.tensor([index != 1 for index in range(len(SCORES))])
    batch = rollouts().replace(finished=finished)
    expected = (lead_loss(D - C) + lead_loss(G - F)) / 2
    assert loss_of(make(missing_eos_penalty=4.5), batch) == pytest.approx(expected, abs=1e-12)


def test_figures_are_of_all_rollouts() -> None:
    optimizer = make()
    optimizer.prepare(rollouts())
    ratios = [sum(math.log(POLICY[t] / REFERENCE[t]) for t in tokens) for rows in RESPONSES for tokens in rows]
    figures = optimizer.batch_metrics
    assert figures["kl"] == pytest.approx(sum(ratios) / 9, abs=1e-6)
    assert figures["reward"] == pytest.approx(sum(SCORES) / 9, abs=1e-6)
    assert figures["response_length"] == pytest.approx(20 / 9)
    assert figures["beta"] == BETA


def test_without_anything_to_compare_nothing_is_learnt() -> None:
    optimizer = make()
    with torch.no_grad():
        batch = optimizer.prepare(rollouts([1.0] * 9))
    loss, metrics = optimizer.loss(batch)
    backward(loss)
    assert float(loss.detach()) == 0.0
    assert not any(bool(gradient.any()) for gradient in gradients(optimizer.modules()).values())
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert "reference_kl" not in metrics


def test_one_prompt_without_anything_to_compare_is_kept_for_the_step() -> None:
    optimizer = make()
    batch = optimizer.prepare(rollouts([1.0] * 9).select([0]))
    assert batch.num_groups == 1
    with torch.no_grad():
        assert float(optimizer.loss(batch)[0]) == 0.0


def test_log_probabilities_that_no_sampler_gave_are_those_of_the_policy() -> None:
    given, missing = make(), make()
    batch = rollouts()
    assert loss_of(missing, batch.replace(logprobs=None)) == pytest.approx(loss_of(given, batch), abs=1e-12)
    assert missing.batch_metrics["kl"] == pytest.approx(given.batch_metrics["kl"], abs=1e-6)
    sampled_otherwise = make()
    other = torch.tensor(REFERENCE, dtype=torch.float64).log()[batch.response_ids]
    loss_of(sampled_otherwise, batch.replace(logprobs=other))
    assert sampled_otherwise.batch_metrics["kl"] == pytest.approx(0.0, abs=1e-6), "the sampler's own are believed"


def test_beta_follows_the_kl_of_the_batch_before() -> None:
    """The measured KL is under its target, so beta falls by a fifth times 9 responses of a horizon of 36."""
    optimizer = make(kl_controller="adaptive", kl_target=1e-3, kl_horizon=36.0)
    first, second = (loss_of(optimizer, rollouts()) for _ in range(2))
    assert first == pytest.approx((lead_loss(B - C) + lead_loss(G - F)) / 2, abs=1e-12)
    assert optimizer.batch_metrics["kl"] < 0
    beta = BETA * (1 - 0.2 * 9 / 36)
    assert second == pytest.approx((lead_loss(B - C, beta=beta) + lead_loss(G - F, beta=beta)) / 2, abs=1e-12)
    assert optimizer.batch_metrics["beta"] == pytest.approx(beta)


def test_it_is_dpo_on_the_ranked_texts() -> None:
    """The same prompts and texts as recorded rankings give DPO the same loss, for another policy than the sampler."""
    online = OnlineDPO(OnlineDPO.Config(pairs="all", group_size=3), policy=TinyPolicy())
    sampled = online.policy.generate(prompts(), n=3, sampling=Sampling(max_tokens=200), seed=4)
    assert bool(sampled.finished.all())
    scores = [float(len(text)) for group in sampled.groups for text in group.responses]
    prepared = online.prepare(sampled.replace(rewards=torch.tensor(scores)))
    ranked = [
        type(group)(group.prompt, group.responses, scores=tuple(float(len(text)) for text in group.responses))
        for group in sampled.groups
    ]
    recorded = DPO(policy=TinyPolicy())
    offline = recorded.prepare(recorded.policy.encode([group.ranked_by_scores() for group in ranked]))
    for optimizer in (online, recorded):
        nudge(optimizer.modules(), size=0.2)
    (one, figures), (other, theirs) = online.loss(prepared), recorded.loss(offline)
    terms = terms_of_network(online.modules(), prepared.num_tokens)
    assert float(one.detach()) == near(float(other.detach()), terms=terms)
    assert float(figures["margin"]) == near(float(theirs["margin"]), terms=terms, scale=1.0)
    assert float(figures["margin"]) != 0.0


def test_reaches_the_optimum_under_bradley_terry() -> None:
    """Gumbel noise on the scores makes the better of two win as Bradley-Terry says. Then the optimum of DPO is that of
    the reward with the KL, whoever samples: pi_ref * exp(reward / beta). It ends 0.01 away from it."""
    policy, beta, noise = TablePolicy(REFERENCE), 0.5, torch.Generator().manual_seed(0)
    optimizer = OnlineDPO(OnlineDPO.Config(beta=beta, pairs="all", group_size=4), policy=policy)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    adam = torch.optim.Adam([policy.logits], lr=0.1)
    for iteration in range(60):
        logprobs = policy.logits.detach().log_softmax(-1)
        tokens = torch.multinomial(logprobs.exp(), 1024, replacement=True, generator=noise)
        gumbel = -(-torch.rand(1024, generator=noise, dtype=torch.float64).log()).log()
        batch = batch_of([[[token] for token in row] for row in tokens.view(256, 4).tolist()])
        batch = optimizer.prepare(batch.replace(rewards=weights.log()[tokens] + gumbel, logprobs=logprobs[tokens]))
        adam.param_groups[0]["lr"] = 0.1 * (1 - iteration / 60)
        adam.zero_grad()
        backward(optimizer.loss(batch)[0])
        adam.step()
    reference = torch.tensor(REFERENCE, dtype=torch.float64)
    target = reference * weights ** (1 / beta)
    target = target / target.sum()
    assert distance(reference, target) > 0.5
    assert distance(policy.logits.detach().softmax(-1), target) < 0.02


@pytest.mark.slow
def test_an_infallible_reward_leaves_the_best_response_alone() -> None:
    config = OnlineDPO.Config(beta=0.1)
    optimizer = OnlineDPO(config, policy=policy_of_four_tokens(), reward=ScoreOf(REWARD_OF_TOKEN.__getitem__))
    learn(optimizer, iterations=60, n=8, max_tokens=1, rate=0.05)
    assert token_distribution(optimizer.policy)[1] > 0.95


@pytest.mark.slow
def test_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"n_epochs": 2, "kl_controller": "adaptive", "kl_target": 0.01, "reference_refresh_every": 3}
    assert_goes_on_bit_for_bit(OnlineDPO, tmp_path, pairs="all", **options)


@pytest.mark.slow
def test_the_reward_rises(tmp_path: Path) -> None:
    _, log = online_run(OnlineDPO, tmp_path, iterations=12, learning_rate=0.1, pairs="all")
    assert log[0]["reward"] < 0.1
    assert log[-1]["reward"] > 0.4


def test_one_response_a_prompt_is_refused() -> None:
    _, problems = read_component(registry(), "optimizer", {"plugin": "online-dpo", "group_size": 1})
    assert [(problem.key, "at least 2" in problem.what) for problem in problems] == [(("group_size",), True)]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"reference_max_kl": 1.0}, "reference_max_kl"),
        ({"kl_controller": "linear"}, "kl_coef_end"),
        ({"pairs": "all"}, "pairs"),
    ],
)
def test_options_that_can_only_be_mistakes_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(OptionsError) as raised:
        OnlineDPO.Config(**options)
    assert [problem.key for problem in raised.value.problems] == [(where,)]
