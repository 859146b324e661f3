"""RAFT: the likelihood of the winners by hand, ties and thresholds, and what it converges to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from alignkit_grpo.raft import RAFT

from alignkit.batch import GroupBatch
from alignkit.checking import OptionsError
from alignkit.records import Group, Prompt
from alignkit.testing import OptimizerContract, near
from alignkit.testing.known_answer import (
    REWARD_OF_TOKEN,
    ScoreOf,
    distance,
    learn,
    policy_of_four_tokens,
    token_distribution,
)
from alignkit.testing.runs import assert_goes_on_bit_for_bit, online_run
from alignkit.testing.tables import TablePolicy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Group p: A is the tokens 0 1 2, B is 3 4, C is 5 (cut off), D is 6; group q: E is 7 8, F is 9.
LOGPROBS = [-1.0, -0.5, -2.0, -0.3, -1.2, -0.7, -0.1, -0.4, -0.9, -1.5]
REFERENCE = [-1.0, -0.5, -2.0, -2.3, -1.2, -0.7, -0.6, -0.4, -0.9, -1.5]
SCORES = [1.5, 3.0, 3.0, 2.9, -1.0, -1.0]


class TestRAFT(OptimizerContract):
    component = RAFT


class TestRAFTWithTheKL(OptimizerContract):
    component = RAFT
    options: ClassVar[Mapping[str, Any]] = {
        "group_size": 4,
        "winners": 2,
        "threshold": 0.0,
        "kl_coef": 0.1,
        "kl_controller": "linear",
        "n_epochs": 2,
        "aggregation": "response",
        "missing_eos_penalty": 0.1,
    }


def rollouts(scores: Sequence[float] = SCORES) -> GroupBatch:
    groups = [Group(Prompt(text="p"), ("A", "B", "C", "D")), Group(Prompt(text="q"), ("E", "F"))]
    ids = [[[0, 1, 2], [3, 4], [5], [6]], [[7, 8], [9]]]
    batch = GroupBatch.from_ids([[0], [1, 2]], ids, groups, finished=[True, True, False, True, True, True])
    return batch.replace(rewards=torch.tensor(scores), logprobs=torch.tensor(LOGPROBS), response_limit=4)


def trained_on(scores: Sequence[float] = SCORES, **options: Any) -> tuple[list[str], float]:
    """The winners and their loss, under a policy that is still the one that sampled."""
    optimizer = RAFT(RAFT.Config(**options), policy=TablePolicy(LOGPROBS, REFERENCE))
    batch = optimizer.prepare(rollouts(scores))
    return [text for group in batch.groups for text in group.responses], float(optimizer.loss(batch)[0].detach())


def test_the_first_of_the_best_is_imitated() -> None:
    """B and C score the same; E and F too."""
    winners, loss = trained_on()
    assert winners == ["B", "E"]
    assert loss == near((0.3 + 1.2 + 0.4 + 0.9) / 4, terms=10)


def test_each_response_weighs_the_same_where_asked() -> None:
    _, loss = trained_on(aggregation="response", winners=2)
    assert loss == near(((0.3 + 1.2) / 2 + 0.7 + (0.4 + 0.9) / 2 + 1.5) / 4, terms=10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"winners": 2}, ["B", "C", "E", "F"]),
        ({"winners": 3}, ["B", "C", "D", "E", "F"]),
        ({"winners": 2, "threshold": 0.0}, ["B", "C"]),
        ({"winners": 4, "group_size": 4, "threshold": 2.9}, ["B", "C", "D"]),
        ({"winners": 4, "group_size": 4, "threshold": -1.0}, ["A", "B", "C", "D", "E", "F"]),
        # C loses half a point for having been cut off, B two nats of KL at 0.1.
        ({"missing_eos_penalty": 0.5, "winners": 2}, ["B", "D", "E", "F"]),
        ({"kl_coef": 0.1}, ["C", "E"]),
        ({"kl_coef": 0.1, "winners": 2}, ["C", "D", "E", "F"]),
    ],
)
def test_who_wins(options: dict[str, Any], expected: list[str]) -> None:
    scores = [1.5, 3.0, 3.0, torch.tensor(2.9).item(), -1.0, -1.0]
    assert trained_on(scores, **options)[0] == expected


def test_where_no_one_reaches_the_threshold_nothing_is_learnt() -> None:
    optimizer = RAFT(RAFT.Config(threshold=10.0), policy=TablePolicy(LOGPROBS, REFERENCE))
    batch = optimizer.prepare(rollouts())
    loss, _ = optimizer.loss(batch)
    assert batch.num_groups == 1
    assert float(loss.detach()) == 0.0
    assert optimizer.batch_metrics["kept"] == 0.0
    assert optimizer.batch_metrics["reward"] == near(sum(SCORES) / 6, terms=10)


def test_later_epochs_are_likelihood_too() -> None:
    """The weights have moved since sampling: the loss is that of the policy as it is, without a ratio."""
    optimizer = RAFT(RAFT.Config(n_epochs=3), policy=TablePolicy([2 * x for x in LOGPROBS], REFERENCE))
    batch = optimizer.prepare(rollouts())
    assert float(optimizer.loss(batch)[0].detach()) == near(2 * (0.3 + 1.2 + 0.4 + 0.9) / 4, terms=10)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"winners": 9}, "winners"),
        ({"winners": 4, "group_size": 4}, "winners"),
        ({"reference_refresh_every": 3}, "reference_refresh_every"),
        ({"normalize_rewards": True}, "normalize_rewards"),
    ],
)
def test_options_that_choose_nothing_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(OptionsError) as raised:
        RAFT.Config(**options)
    assert [problem.key for problem in raised.value.problems] == [(where,)]
    RAFT.Config(n_epochs=4)


def learner(score: ScoreOf, **options: Any) -> RAFT:
    return RAFT(RAFT.Config(**options), policy=policy_of_four_tokens(), reward=score)


def test_the_best_token_takes_all() -> None:
    optimizer = learner(ScoreOf(REWARD_OF_TOKEN.__getitem__), winners=16, group_size=128)
    learn(optimizer, iterations=60, n=128, max_tokens=1, rate=0.05)
    assert token_distribution(optimizer.policy)[1] > 0.95


def test_rejection_sampling_leaves_the_policy_given_that_it_passes() -> None:
    """After one batch, fitted to the end: pi(y) / pi(all that pass) for what passes. It ends within 0.012."""
    options = {"winners": 4096, "group_size": 4096, "threshold": 0.3, "n_epochs": 40}
    optimizer = learner(ScoreOf(REWARD_OF_TOKEN.__getitem__), **options)
    start = token_distribution(optimizer.policy)
    learn(optimizer, iterations=1, n=4096, max_tokens=1, rate=0.05)
    passes = start * torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert distance(start, passes / passes.sum()) > 0.3
    assert distance(token_distribution(optimizer.policy), passes / passes.sum()) < 0.02


@pytest.mark.slow
def test_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"n_epochs": 2, "kl_coef": 0.1, "reference_refresh_every": 2, "reference_decay": 0.5, "threshold": 0.0}
    assert_goes_on_bit_for_bit(RAFT, tmp_path, **options)


@pytest.mark.slow
def test_the_reward_rises(tmp_path: Path) -> None:
    _, log = online_run(RAFT, tmp_path, iterations=15, learning_rate=0.05)
    assert log[0]["reward"] < 0.1
    assert log[-1]["reward"] > 0.5
