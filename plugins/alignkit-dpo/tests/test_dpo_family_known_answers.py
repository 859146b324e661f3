"""Where each algorithm of the family ends, on a policy over three tokens whose optimum is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_dpo.apo import APODown, APOZero
from alignkit_dpo.beta_dpo import BetaDPO
from alignkit_dpo.dpo import DPO, DPOP, RDPO, RobustDPO
from alignkit_dpo.ipo import SPPO
from alignkit_dpo.kto import KTO
from alignkit_dpo.reference_free import CPO, ORPO, SimPO
from alignkit_dpo.slic import SLiC
from alignkit_dpo.whole_rankings import EXO, NCA, ListDPO
from table_policy import (
    REFERENCE,
    WEIGHTS,
    TablePolicy,
    batch_of,
    minimise,
    population_of_pairs,
    population_of_rankings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SPARE = (0.2, 0.2, 0.6)
"""A reference in which the third token takes up what the two others lose or gain."""
ODDS = math.log(4)


def won_four_of_five(first: list[int], second: list[int]) -> Any:
    """A pair that the first response wins four times out of five: a lead of log 4 under Bradley-Terry."""
    return batch_of([[first, second]] * 5, [(0, 1)] * 4 + [(1, 0)])


def learnt(
    member: type[Any], batch: Any, *, start: tuple[float, ...] = SPARE, rounds: int = 1, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [3] of the tokens at the end, and by how much they rose."""
    policy = TablePolicy(start)
    optimizer = member(member.Config(**options), policy=policy)
    for _ in range(rounds):
        minimise(optimizer, batch, steps=200)
    logprobs = policy.logits.detach().log_softmax(-1)
    return logprobs, logprobs - torch.tensor(start, dtype=torch.float64).log()


def descended(member: type[Any], batch: Any, **options: Any) -> torch.Tensor:
    """By how much each token's log-probability rose in 500 small steps down the gradient: for losses with a kink."""
    policy = TablePolicy(SPARE)
    optimizer = member(member.Config(**options), policy=policy)
    prepared = optimizer.prepare(batch)
    sgd = torch.optim.SGD([policy.logits], lr=0.01)
    for _ in range(500):
        sgd.zero_grad()
        loss, _ = optimizer.loss(prepared)
        loss.backward()
        sgd.step()
    return policy.logits.detach().log_softmax(-1) - torch.tensor(SPARE, dtype=torch.float64).log()


def assert_probabilities(logprobs: torch.Tensor, unnormalised: list[float], *, distance: float = 1e-4) -> None:
    expected = torch.tensor([u / sum(unnormalised) for u in unnormalised], dtype=torch.float64)
    assert float((logprobs.exp() - expected).abs().sum()) / 2 < distance


def test_list_dpo_reaches_the_optimum_of_the_regularised_objective() -> None:
    logprobs, _ = learnt(ListDPO, population_of_rankings(), start=REFERENCE, beta=0.5)
    assert_probabilities(logprobs, [p * w**2 for p, w in zip(REFERENCE, WEIGHTS, strict=True)])


def test_beta_dpo_ends_where_dpo_does() -> None:
    # The mean lead comes to rest, so that beta comes back to its own value.
    options = {"beta": 0.5, "momentum": 0.5, "rounds": 30}
    logprobs, _ = learnt(BetaDPO, population_of_pairs(), start=REFERENCE, **options)
    assert_probabilities(logprobs, [p * w**2 for p, w in zip(REFERENCE, WEIGHTS, strict=True)])


def test_robust_dpo_sees_through_flipped_preferences() -> None:
    # Every pair 294 times, a seventh of them recorded the wrong way round: 294 is the least for whole numbers.
    pairs, orders = [], []
    for i in range(3):
        for j in range(i):
            true_wins = 294 * WEIGHTS[i] // (WEIGHTS[i] + WEIGHTS[j])
            wins = (6 * true_wins + 294 - true_wins) // 7
            pairs += [[[i], [j]]] * 294
            orders += [(0, 1)] * wins + [(1, 0)] * (294 - wins)
    batch = batch_of(pairs, orders)
    optimum = [p * w**2 for p, w in zip(REFERENCE, WEIGHTS, strict=True)]
    logprobs, _ = learnt(RobustDPO, batch, start=REFERENCE, beta=0.5, label_smoothing=1 / 7)
    assert_probabilities(logprobs, optimum)
    deceived, _ = learnt(DPO, batch, start=REFERENCE, beta=0.5)
    with pytest.raises(AssertionError):
        assert_probabilities(deceived, optimum, distance=0.05)


DERIVATIVES: dict[str, Callable[[float], float]] = {
    "forward-kl": lambda u: 1 - 1 / u,
    "js": lambda u: math.log(2 * u / (1 + u)),
    "alpha": lambda u: (1 - u**-0.4) / 0.4,
}


@pytest.mark.parametrize("kind", DERIVATIVES)
@pytest.mark.parametrize("member", [DPO, ListDPO])
def test_other_divergences_reach_their_optimum(member: type[Any], kind: str) -> None:
    # arXiv:2309.16240, theorem 1: beta * f'(pi / pi_ref) is the reward, up to a constant.
    population = population_of_pairs() if member is DPO else population_of_rankings()
    alpha = {"f_alpha": 0.4} if kind == "alpha" else {}
    _, gains = learnt(member, population, start=REFERENCE, beta=2.0, f_divergence=kind, **alpha)
    rewards = [2.0 * DERIVATIVES[kind](math.exp(gain)) for gain in gains.tolist()]
    assert rewards[1] - rewards[0] == pytest.approx(math.log(2), abs=1e-3)
    assert rewards[2] - rewards[0] == pytest.approx(math.log(5), abs=1e-3)


def test_rdpo_takes_the_worth_of_length_out_of_the_lead() -> None:
    _, gains = learnt(RDPO, won_four_of_five([0, 0, 2], [1]), beta=0.5, length_weight=0.3)
    lead = float(2 * gains[0] + gains[2] - gains[1])
    assert 0.5 * lead == pytest.approx(ODDS - 0.3 * 2, abs=1e-4)


def test_dpop_leads_without_losing_the_chosen_response() -> None:
    # The responses differ in one token of two, the second's token being in both: DPO lowers both of them.
    batch = batch_of([[[1, 0], [1, 1]]], [(0, 1)])
    plain = descended(DPO, batch, beta=0.5)
    held = descended(DPOP, batch, beta=0.5, penalty=5.0)
    for gains in (plain, held):
        assert float(gains[0] - gains[1]) > 1.5
    assert float(plain[0] + plain[1]) < -0.3
    assert float(held[0] + held[1]) == pytest.approx(0, abs=0.05)


def test_sppo_moves_each_response_by_its_own_target() -> None:
    _, gains = learnt(SPPO, batch_of([[[0], [1]]], [(0, 1)]), beta=1.0)
    assert gains[:2].tolist() == pytest.approx([0.5, -0.5], abs=1e-4)


def test_slic_stops_at_its_margin() -> None:
    gains = descended(SLiC, batch_of([[[0], [1]]], [(0, 1)]), beta=0.5)
    assert 2.0 <= float(gains[0] - gains[1]) < 2.02


def test_apo_zero_raises_the_chosen_response_itself() -> None:
    logprobs, _ = learnt(APOZero, batch_of([[[0], [1]]], [(0, 1)]), beta=2.0)
    assert float(logprobs[0].exp()) > 0.95


def test_apo_down_lowers_both_and_the_rejected_one_further() -> None:
    logprobs, gains = learnt(APODown, batch_of([[[0], [1]]], [(0, 1)]), beta=2.0)
    assert float(logprobs[2].exp()) > 0.95
    assert float(gains[1]) < float(gains[0]) - 2 < -2


def test_exo_reaches_its_smoothed_target() -> None:
    # Of three, one best: the policy over them is 0.8, 0.1 and 0.1 where the reference is uniform and beta is 1.
    logprobs, _ = learnt(
        EXO, batch_of([[[0], [1], [2]]], [(1, 0, 1)]), start=(1 / 3,) * 3, beta=1.0, label_smoothing=0.2
    )
    assert_probabilities(logprobs, [0.1, 0.8, 0.1])


def test_nca_takes_the_best_reward_to_the_log_of_k() -> None:
    _, gains = learnt(NCA, batch_of([[[0], [1]]], [(0, 1)]), beta=1.0)
    assert float(gains[0]) == pytest.approx(math.log(2), abs=1e-3)
    assert float(gains[1]) < -4


def test_cpo_compares_without_the_reference_and_imitates() -> None:
    logprobs, _ = learnt(CPO, population_of_pairs(), start=REFERENCE, beta=0.5, sft_weight=0.0)
    assert_probabilities(logprobs, [float(w**2) for w in WEIGHTS])
    # With the likelihood alone: as often as each is chosen, 21 of the 126 pairs, 42 and 63 in turn.
    imitated, _ = learnt(CPO, population_of_pairs(), start=REFERENCE, beta=1e-9, sft_weight=1.0)
    chosen = [14 + 7, 28 + 12, 35 + 30]
    assert_probabilities(imitated, [float(count) for count in chosen])


def test_simpo_leads_by_its_margin_a_token() -> None:
    logprobs, _ = learnt(SimPO, won_four_of_five([0, 0], [1, 1, 2]), beta=2.0, margin=0.5)
    lead = float(logprobs[0] - (2 * logprobs[1] + logprobs[2]) / 3)
    # The lead also satisfies the flipped fifth: sigmoid(2 * lead - 0.5) against sigmoid(-2 * lead - 0.5).
    slope = 4 / (1 + math.exp(2 * lead - 0.5)) - 1 / (1 + math.exp(-2 * lead - 0.5))
    assert slope == pytest.approx(0, abs=1e-4)


def test_orpo_sets_the_odds() -> None:
    logprobs, _ = learnt(ORPO, won_four_of_five([0, 0], [1]), beta=0.7, sft_weight=0.0)
    chosen, rejected = logprobs[:2].exp().tolist()
    assert math.log(chosen / (1 - chosen)) - math.log(rejected / (1 - rejected)) == pytest.approx(ODDS, abs=1e-4)


@pytest.mark.parametrize(("weight", "winner"), [(1.0, 0), (2.0, 2)])
def test_kto_weighs_kinds_of_unequal_number(weight: float, winner: int) -> None:
    # The first token is desirable in six cases of ten, the second in four; nothing is said of the third.
    labels = [True] * 6 + [False] * 4
    batch = batch_of([[[0]]] * 10 + [[[1]]] * 10, labels=[(label,) for label in labels + [not x for x in labels]])
    options = {"beta": 1.0, "undesirable_weight": weight}
    logprobs, _ = learnt(KTO, batch, rounds=10, **options)
    assert int(logprobs.argmax()) == winner
    assert float(logprobs[winner].exp()) > 0.9
