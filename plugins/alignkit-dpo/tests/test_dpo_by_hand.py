"""Every loss against its paper's formula, written out in plain Python: three responses with a tie, unequal lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from alignkit_dpo.apo import APODown, APOZero
from alignkit_dpo.beta_dpo import BetaDPO
from alignkit_dpo.dpo import DPO, DPOP, RDPO, RobustDPO
from alignkit_dpo.ipo import IPO, SPPO
from alignkit_dpo.kto import KTO, mismatched, surroundings
from alignkit_dpo.options import BetaDPOOptions, KTOOptions
from alignkit_dpo.reference_free import CPO, ORPO, SimPO
from alignkit_dpo.slic import SLiC
from alignkit_dpo.whole_rankings import EXO, NCA, ListDPO
from table_policy import TablePolicy, batch_of

REFERENCE = (0.5, 0.2, 0.3)
POLICY = (0.3, 0.6, 0.1)
# The first group is a ranking with a tie, the second a pair whose chosen response has lost probability.
RESPONSES = [[[1, 1, 2], [0], [2, 0]], [[0, 0], [1, 2, 1, 1]]]
RANKS = [(0, 1, 1), (0, 1)]
PAIRS = [[(0, 1), (0, 2)], [(0, 1)]]


@dataclass(frozen=True)
class Answer:
    """A response: log-probability, log-ratio to the reference, and tokens."""

    p: float
    d: float
    n: int


def answer(tokens: list[int]) -> Answer:
    p = sum(math.log(POLICY[token]) for token in tokens)
    return Answer(p, p - sum(math.log(REFERENCE[token]) for token in tokens), len(tokens))


GROUPS = [[answer(tokens) for tokens in rows] for rows in RESPONSES]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo(lead: float) -> float:
    return math.log(1 + math.exp(-lead))


def log_odds(a: Answer) -> float:
    p = math.exp(a.p / a.n)
    return math.log(p / (1 - p))


PairLoss = Callable[[Answer, Answer], float]
PAIR_LOSSES: list[tuple[type[Any], dict[str, Any], PairLoss]] = [
    (DPO, {"beta": 0.3}, lambda b, w: dpo(0.3 * (b.d - w.d))),
    (
        DPO,
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda b, w: 0.8 * dpo(0.3 * (b.d - w.d)) + 0.2 * dpo(0.3 * (w.d - b.d)),
    ),
    (
        DPO,
        {"beta": 0.3, "f_divergence": "forward-kl"},
        lambda b, w: dpo(0.3 * (math.exp(-w.d) - math.exp(-b.d))),
    ),
    (
        DPO,
        {"beta": 0.3, "f_divergence": "js"},
        lambda b, w: dpo(0.3 * math.log(math.exp(b.d) * (1 + math.exp(w.d)) / math.exp(w.d) / (1 + math.exp(b.d)))),
    ),
    (
        DPO,
        {"beta": 0.3, "f_divergence": "alpha", "f_alpha": 0.25},
        lambda b, w: dpo(0.3 * (math.exp(-0.25 * w.d) - math.exp(-0.25 * b.d)) / 0.25),
    ),
    (
        RobustDPO,
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda b, w: (0.8 * dpo(0.3 * (b.d - w.d)) - 0.2 * dpo(0.3 * (w.d - b.d))) / 0.6,
    ),
    (
        DPOP,
        {"beta": 0.3, "penalty": 5.0},
        lambda b, w: dpo(0.3 * (b.d - w.d - 5 * max(0.0, -b.d))),
    ),
    (RDPO, {"beta": 0.3, "length_weight": 0.4}, lambda b, w: dpo(0.3 * (b.d - w.d) + 0.4 * (b.n - w.n))),
    (IPO, {"beta": 0.3}, lambda b, w: (b.d / b.n - w.d / w.n - 1 / 0.6) ** 2),
    (SPPO, {"beta": 0.3}, lambda b, w: (b.d - 1 / 0.6) ** 2 + (w.d + 1 / 0.6) ** 2),
    (SLiC, {"beta": 0.3}, lambda b, w: max(0.0, 1 - 0.3 * (b.d - w.d))),
    (SLiC, {"beta": 0.3, "normalized": False}, lambda b, w: max(0.0, 1 - 0.3 * (b.p - w.p))),
    (APOZero, {"beta": 0.3}, lambda b, w: 1 - sigmoid(0.3 * b.d) + sigmoid(0.3 * w.d)),
    (APODown, {"beta": 0.3}, lambda b, w: sigmoid(0.3 * b.d) + 1 - sigmoid(0.3 * (b.d - w.d))),
    (CPO, {"beta": 0.3, "sft_weight": 0.0}, lambda b, w: dpo(0.3 * (b.p - w.p))),
    (SimPO, {"beta": 1.5, "margin": 0.7}, lambda b, w: dpo(1.5 * (b.p / b.n - w.p / w.n) - 0.7)),
    (ORPO, {"beta": 0.3, "sft_weight": 0.0}, lambda b, w: 0.3 * dpo(log_odds(b) - log_odds(w))),
]

GroupLoss = Callable[[list[Answer]], float]


def plackett_luce(group: list[Answer]) -> float:
    """With a tie for the last place there is only one stage: who is first."""
    return -math.log(math.exp(0.3 * group[0].d) / sum(math.exp(0.3 * a.d) for a in group))


def exo(group: list[Answer]) -> float:
    total = sum(math.exp(0.3 * a.d) for a in group)
    q = [math.exp(0.3 * a.d) / total for a in group]
    p = [0.8] + [0.2 / (len(group) - 1)] * (len(group) - 1)
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))


def nca(group: list[Answer]) -> float:
    everyone = sum(math.log(sigmoid(-0.3 * a.d)) for a in group) / len(group)
    return -math.log(sigmoid(0.3 * group[0].d)) - everyone


GROUP_LOSSES: list[tuple[type[Any], dict[str, Any], GroupLoss]] = [
    (ListDPO, {"beta": 0.3}, plackett_luce),
    (EXO, {"beta": 0.3, "label_smoothing": 0.2}, exo),
    (NCA, {"beta": 0.3}, nca),
]


def loss_of(member: type[Any], options: dict[str, Any]) -> float:
    policy = TablePolicy(REFERENCE)
    optimizer = member(member.Config(**options), policy=policy)
    with torch.no_grad():
        batch = optimizer.prepare(batch_of(RESPONSES, RANKS))
        policy.logits.copy_(torch.tensor(POLICY, dtype=torch.float64).log())
        loss, _ = optimizer.loss(batch)
    return float(loss)


def mean_over_pairs(loss: PairLoss) -> float:
    """The mean over groups of the mean over their pairs."""
    rows = [
        [loss(group[better], group[worse]) for better, worse in pairs]
        for group, pairs in zip(GROUPS, PAIRS, strict=True)
    ]
    return sum(sum(row) / len(row) for row in rows) / len(rows)


@pytest.mark.parametrize(("member", "options", "loss"), PAIR_LOSSES)
def test_pair_losses(member: type[Any], options: dict[str, Any], loss: PairLoss) -> None:
    assert loss_of(member, options) == pytest.approx(mean_over_pairs(loss), abs=1e-8)


@pytest.mark.parametrize(("member", "options", "loss"), GROUP_LOSSES)
def test_losses_of_whole_rankings(member: type[Any], options: dict[str, Any], loss: GroupLoss) -> None:
    assert loss_of(member, options) == pytest.approx(sum(map(loss, GROUPS)) / 2, abs=1e-9)


@pytest.mark.parametrize(("member", "options", "_"), [PAIR_LOSSES[0], PAIR_LOSSES[-1], *GROUP_LOSSES])
def test_the_likelihood_term_is_the_best_response_a_token(member: type[Any], options: dict[str, Any], _: Any) -> None:
    # By hand: group one's best has log(.6 * .6 * .1) / 3, group two's log(.3 * .3) / 2.
    nll = -(math.log(0.036) / 3 + math.log(0.09) / 2) / 2
    assert nll == pytest.approx(1.156026, abs=1e-6)
    difference = loss_of(member, {**options, "sft_weight": 0.7}) - loss_of(member, {**options, "sft_weight": 0.0})
    assert difference == pytest.approx(0.7 * nll, abs=1e-9)


@pytest.mark.parametrize(("member", "options"), [(DPO, {"sft_weight": 0.5}), (IPO, {}), (ListDPO, {})])
def test_a_ranking_counts_as_much_as_its_weight(member: type[Any], options: dict[str, Any]) -> None:
    def loss(weights: tuple[float, ...], chosen: list[int]) -> float:
        policy = TablePolicy(REFERENCE)
        optimizer = member(member.Config(**options), policy=policy)
        batch = batch_of([RESPONSES[g] for g in chosen], [RANKS[g] for g in chosen])
        groups = tuple(replace(group, meta={"weight": w}) for group, w in zip(batch.groups, weights, strict=True))
        batch = optimizer.prepare(batch.replace(groups=groups))
        with torch.no_grad():
            policy.logits.copy_(torch.tensor(POLICY, dtype=torch.float64).log())
            return float(optimizer.loss(batch)[0])

    first, second = loss((1,), [0]), loss((1,), [1])
    assert loss((0.25, 2), [0, 1]) == pytest.approx((0.25 * first + 2 * second) / 2, rel=1e-9)


def test_figures_of_a_step() -> None:
    policy = TablePolicy(REFERENCE)
    optimizer = DPO(DPO.Config(beta=0.3, sft_weight=0.7), policy=policy)  # type: ignore[arg-type]
    # A third group whose responses are the same orders nothing: it is dropped and counted.
    batch = optimizer.prepare(batch_of([*RESPONSES, [[1], [1]]], [*RANKS, (0, 1)]))
    assert optimizer.batch_metrics == {"groups_without_order": 1.0}
    with torch.no_grad():
        policy.logits.copy_(torch.tensor(POLICY, dtype=torch.float64).log())
        _, metrics = optimizer.loss(batch)

    def mean(figure: PairLoss) -> float:
        return mean_over_pairs(figure)

    expected = {
        "accuracy": mean(lambda b, w: float(b.d > w.d)),
        "margin": mean(lambda b, w: 0.3 * (b.d - w.d)),
        "chosen_reward": mean(lambda b, w: 0.3 * b.d),
        "rejected_reward": mean(lambda b, w: 0.3 * w.d),
        "chosen_logprobs": mean(lambda b, w: b.p),
        "rejected_logprobs": mean(lambda b, w: w.p),
        "reference_kl": -sum(answer.d for group in GROUPS for answer in group) / 5,
        "nll": -(math.log(0.036) / 3 + math.log(0.09) / 2) / 2,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("member", [CPO, SimPO, ORPO])
def test_no_reference_is_made_where_the_loss_has_none(member: type[Any]) -> None:
    assert member(policy=TablePolicy(REFERENCE)).reference is None
    assert DPO(policy=TablePolicy(REFERENCE)).reference is not None


def test_list_dpo_on_a_full_ranking_takes_every_place() -> None:
    policy = TablePolicy(REFERENCE)
    optimizer = ListDPO(ListDPO.Config(beta=0.3), policy=policy)  # type: ignore[arg-type]
    batch = optimizer.prepare(batch_of(RESPONSES[:1], [(1, 2, 0)]))
    with torch.no_grad():
        policy.logits.copy_(torch.tensor(POLICY, dtype=torch.float64).log())
        loss, _ = optimizer.loss(batch)
    first, last, best = (math.exp(0.3 * a.d) for a in GROUPS[0])
    expected = -math.log(best / (best + first + last)) - math.log(first / (first + last))
    assert float(loss) == pytest.approx(expected, abs=1e-9)


def test_beta_follows_the_running_mean_of_leads() -> None:
    options = BetaDPOOptions(beta=0.5, beta_gain=0.8, momentum=0.75)
    policy = TablePolicy(REFERENCE)
    optimizer = BetaDPO(options, policy=policy)
    batch = optimizer.prepare(batch_of(RESPONSES, RANKS))
    running = 0.0
    for probabilities in (POLICY, (0.2, 0.2, 0.6), (0.1, 0.1, 0.8)):
        with torch.no_grad():
            policy.logits.copy_(torch.tensor(probabilities, dtype=torch.float64).log())
            optimizer.begin_step(batch)
            loss, _ = optimizer.loss(batch)
        ratio = [math.log(p / r) for p, r in zip(probabilities, REFERENCE, strict=True)]
        sums = [[sum(ratio[token] for token in tokens) for tokens in rows] for rows in RESPONSES]
        gaps = [sums[0][0] - sums[0][1], sums[0][0] - sums[0][2], sums[1][0] - sums[1][1]]
        lead = 0.5 * ((gaps[0] + gaps[1]) / 2 + gaps[2]) / 2
        running = 0.75 * running + 0.25 * lead
        beta = 0.5 * (1 + 0.8 * (lead - running))
        assert 0.005 < beta != 0.5
        assert optimizer.batch_metrics["beta"] == pytest.approx(beta, abs=1e-9)
        expected = ((dpo(beta * gaps[0]) + dpo(beta * gaps[1])) / 2 + dpo(beta * gaps[2])) / 2
        assert float(loss) == pytest.approx(expected, abs=1e-9)
    assert optimizer.state_dict() == {"mean_lead": pytest.approx(running, abs=1e-9)}


def test_beta_stays_positive() -> None:
    policy = TablePolicy(REFERENCE)
    optimizer = BetaDPO(BetaDPOOptions(beta=2.0, beta_gain=50.0), policy=policy)
    batch = optimizer.prepare(batch_of([[[0], [1]]], [(1, 0)]))
    with torch.no_grad():
        policy.logits.copy_(torch.tensor((0.6, 0.1, 0.3), dtype=torch.float64).log())
        optimizer.begin_step(batch)
    assert optimizer.batch_metrics["beta"] == pytest.approx(0.02)


LABELS = [(True, False, True), (False, True)]


@pytest.mark.parametrize("policy_now", [POLICY, (0.55, 0.15, 0.3)])
def test_kto(policy_now: tuple[float, ...]) -> None:
    policy = TablePolicy(REFERENCE)
    optimizer = KTO(KTOOptions(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5), policy=policy)
    batch = optimizer.prepare(batch_of(RESPONSES, labels=LABELS))
    with torch.no_grad():
        policy.logits.copy_(torch.tensor(policy_now, dtype=torch.float64).log())
        optimizer.begin_step(batch)
        loss, metrics = optimizer.loss(batch)
    ratio = [math.log(p / r) for p, r in zip(policy_now, REFERENCE, strict=True)]
    d = [[sum(ratio[token] for token in tokens) for tokens in rows] for rows in RESPONSES]
    flat = [
        (value, label)
        for values, labels in zip(d, LABELS, strict=True)
        for value, label in zip(values, labels, strict=True)
    ]
    divergence = sum(value for value, _ in flat) / 5
    assert (divergence > 0) == (policy_now == POLICY)
    z = 0.3 * max(0.0, divergence)
    losses = [1.5 * (1 - sigmoid(0.3 * v - z)) if good else 0.5 * (1 - sigmoid(z - 0.3 * v)) for v, good in flat]
    assert float(loss) == pytest.approx(sum(losses) / 5, abs=1e-6)
    assert optimizer.batch_metrics["baseline"] == pytest.approx(z, abs=1e-9)
    right = [good == (0.3 * v > z) for v, good in flat]
    expected = {
        "accuracy": sum(right) / 5,
        "desirable_reward": 0.3 * sum(v for v, good in flat if good) / 3,
        "undesirable_reward": 0.3 * sum(v for v, good in flat if not good) / 2,
        "reference_kl": -divergence,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)


def test_mismatched_prompts_and_responses() -> None:
    batch = batch_of(
        [[[1, 2]], [[3, 4, 5, 6, 7], [8]], [[9]]],
        labels=[(True,), (True, False), (True,)],
        prompts=[[10], [11, 12, 13], [14, 15, 16, 17, 18, 19]],
    )
    # The longest sequence has 8 tokens, so the prompt of six leaves room for two.
    others = mismatched(batch, *surroundings(batch)[:2])
    assert torch.equal(others.prompt_ids, batch.prompt_ids)
    assert others.prompt_lengths.tolist() == [1, 3, 6]
    assert [ids.tolist() for ids in torch.split(others.response_ids, others.lengths.tolist())] == [
        [9],
        [1, 2],
        [3, 4],
        [8],
    ]
    assert others.group_index.tolist() == [0, 1, 2, 2]
    assert [len(group.responses) for group in others.groups] == [1, 1, 2]


def test_a_single_prompt_has_no_baseline() -> None:
    policy = TablePolicy(REFERENCE)
    optimizer = KTO(policy=policy)
    batch = optimizer.prepare(batch_of([[[0], [1]]], labels=[(True, False)]))
    with torch.no_grad():
        policy.logits.copy_(torch.tensor((0.6, 0.3, 0.1), dtype=torch.float64).log())
        optimizer.begin_step(batch)
    assert optimizer.batch_metrics["baseline"] == 0


def test_very_unlikely_responses_keep_losses_and_gradients_finite() -> None:
    for member, options in (
        (DPO, {"f_divergence": "forward-kl"}),
        (DPO, {"f_divergence": "alpha"}),
        (EXO, {}),
        (NCA, {}),
        (ORPO, {}),
    ):
        policy = TablePolicy(REFERENCE)
        optimizer = member(member.Config(**options), policy=policy)  # type: ignore[attr-defined]
        batch = optimizer.prepare(batch_of([[[0] * 50, [1] * 50]] * 2, [(0, 1), (1, 0)]))
        with torch.no_grad():
            policy.table.to(torch.float32)
            policy.logits.copy_(torch.tensor([40.0, 0.0, 0.0]))
        loss, _ = optimizer.loss(batch)
        loss.backward()
        assert bool(loss.isfinite()), member
        assert policy.logits.grad is not None
        assert bool(policy.logits.grad.isfinite().all()), member
