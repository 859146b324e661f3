"""One PPO update of three responses of unequal lengths, one of them cut off, worked out in plain floats.

Policy and critics look every figure up by token id, so that nothing in the expected values comes from a network:
response A is the tokens 0 1 2, B is 3 4 and was cut off, C is 5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_ppo.options import A2COptions, PPOKLOptions, PPOOptions, TRPOOptions
from alignkit_ppo.ppo import A2C, PPO
from alignkit_ppo.ppo_kl import PPOKL
from alignkit_ppo.trpo import TRPO
from torch import nn

from alignkit.batch import GroupBatch
from alignkit.errors import InputError
from alignkit.interfaces import RewardSource, Scorer
from alignkit.records import Group, Prompt
from alignkit.testing import ELEMENTARY, near
from alignkit.testing.tables import TablePolicy, TableScorer

if TYPE_CHECKING:
    from collections.abc import Sequence


OLD = [-1.0, -0.5, -2.0, -0.3, -1.2, -0.7]
REFERENCE = [-1.3, -0.4, -1.0, -0.9, -1.2, -0.2]
VALUES = [0.5, 0.4, 0.3, -0.2, 0.6, 0.7]
NEW_RATIOS = [1.5, 0.5, 1.1, 0.6, 1.4, 0.7]
NEW_VALUES = [0.6, 1.4, 0.1, -0.9, 0.5, -1.7]
BEHIND = {4: 0.9, 2: 55.0, 5: 66.0}
RAW = [1.5, 9.0, -0.7]
GAMMA, LAMBDA, KL_COEF, PENALTY, CLIP, CLIP_VALUE, VF = 0.9, 0.8, 0.1, 0.5, 0.2, 0.3, 0.7
SETTINGS: dict[str, Any] = {
    "gamma": GAMMA, "gae_lambda": LAMBDA, "kl_coef": KL_COEF, "missing_eos_penalty": PENALTY,
    "whiten_advantages": False, "clip_range_value": CLIP_VALUE, "vf_coef": VF,
}  # fmt: skip


class TableReward(RewardSource[Any]):
    """Has a critic to start from, or none."""

    def __init__(self, critic: Scorer | None) -> None:
        super().__init__()
        self.critic = critic

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        raise NotImplementedError

    def start_critic(self) -> Scorer | None:
        return self.critic


def rollouts(raw: list[float] = RAW) -> GroupBatch:
    groups = [Group(Prompt(text="p"), ("012", "34")), Group(Prompt(text="q"), ("5",))]
    batch = GroupBatch.from_ids([[0], [1, 2]], [[[0, 1, 2], [3, 4]], [[5]]], groups, finished=[True, False, True])
    return batch.replace(rewards=torch.tensor(raw), logprobs=torch.tensor(OLD))


def policy() -> TablePolicy:
    return TablePolicy(OLD, REFERENCE, VALUES, critic=TableScorer(VALUES, BEHIND))


def ppo(**options: Any) -> PPO:
    return PPO(
        PPOOptions(**{**SETTINGS, "clip_range": CLIP, **options}),
        policy=policy(),
        reward=TableReward(TableScorer(VALUES, BEHIND)),
    )


def by_hand(expected: Any) -> Any:
    """Some ratios, sums over six tokens and the discounted sums of three, of figures up to 10."""
    return near(expected, terms=2 * ELEMENTARY + 12, scale=10.0 if isinstance(expected, dict) else 3.0)


def rewards_by_hand(scores: list[float], kl: list[float]) -> list[float]:
    return [
        -KL_COEF * kl[0], -KL_COEF * kl[1], -KL_COEF * kl[2] + scores[0],
        -KL_COEF * kl[3], -KL_COEF * kl[4] + scores[1],
        -KL_COEF * kl[5] + scores[2],
    ]  # fmt: skip


def advantages_by_hand(r: list[float], behind_cut: float) -> list[float]:
    a3 = r[2] - 0.3
    a2 = r[1] + 0.9 * 0.3 - 0.4 + 0.9 * 0.8 * a3
    a1 = r[0] + 0.9 * 0.4 - 0.5 + 0.9 * 0.8 * a2
    b2 = r[4] + 0.9 * behind_cut - 0.6
    b1 = r[3] + 0.9 * 0.6 + 0.2 + 0.9 * 0.8 * b2
    return [a1, a2, a3, b1, b2, r[5] - 0.7]


K1 = [0.3, -0.1, -1.0, 0.6, 0.0, -0.5]
ADVANTAGES = advantages_by_hand(rewards_by_hand([1.5, -0.5, -0.7], K1), behind_cut=0.6)


@pytest.mark.parametrize(("critic", "behind_cut"), [("shared", 0.6), ("policy", 0.9), ("reward", 0.9)])
def test_rewards_advantages_and_returns_by_hand(critic: str, behind_cut: float) -> None:
    prepared = ppo(critic=critic).prepare(rollouts())
    rewards = rewards_by_hand([1.5, -0.5, -0.7], K1)
    advantages = advantages_by_hand(rewards, behind_cut)
    assert prepared.token_rewards.tolist() == by_hand(rewards)
    assert prepared.values.tolist() == by_hand(VALUES)
    assert prepared.ref_logprobs.tolist() == by_hand(REFERENCE)
    assert prepared.advantages.tolist() == by_hand(advantages)
    assert prepared.returns.tolist() == by_hand([a + v for a, v in zip(advantages, VALUES, strict=True)])


@pytest.mark.parametrize("critic", ["shared", "policy"])
def test_without_bootstrap_a_cut_is_the_end_and_its_score_is_paid(critic: str) -> None:
    prepared = ppo(critic=critic, bootstrap_truncated=False).prepare(rollouts())
    rewards = rewards_by_hand([1.5, 9.0 - 0.5, -0.7], K1)
    assert prepared.token_rewards.tolist() == by_hand(rewards)
    assert prepared.advantages.tolist() == by_hand(advantages_by_hand(rewards, behind_cut=0.0))


@pytest.mark.parametrize(
    ("estimator", "kl"),
    [("k2", [d * d / 2 for d in K1]), ("k3", [math.exp(-d) - 1 + d for d in K1])],
)
def test_other_estimators_of_the_kl_in_the_reward(estimator: str, kl: list[float]) -> None:
    prepared = ppo(kl_estimator=estimator).prepare(rollouts())
    assert prepared.token_rewards.tolist() == by_hand(rewards_by_hand([1.5, -0.5, -0.7], kl))


def test_scores_are_normalised_then_clipped_then_penalised() -> None:
    algorithm = ppo(normalize_rewards=True, reward_clip=0.5, bootstrap_truncated=False, kl_coef=0.0)
    first = algorithm.prepare(rollouts([1.0, 2.0, 3.0]))
    assert first.token_rewards.tolist() == by_hand([0, 0, -0.5, 0, 0.0 - 0.5, 0.5])
    second = algorithm.prepare(rollouts([2.5, 2.0, 1.5]))
    deviation = math.sqrt((1 + 0 + 1 + 0.25 + 0 + 0.25) / 6)
    score = 0.5 / deviation
    assert score > 0.5
    assert second.token_rewards.tolist() == by_hand([0, 0, 0.5, 0, -0.5, -0.5])
    assert algorithm.batch_metrics["reward"] == pytest.approx(2.0)


def test_whitened_over_all_tokens_of_the_batch() -> None:
    mean = sum(ADVANTAGES) / 6
    deviation = math.sqrt(sum((a - mean) ** 2 for a in ADVANTAGES) / 6)
    prepared = ppo(whiten_advantages=True).prepare(rollouts())
    assert prepared.advantages.tolist() == by_hand([(a - mean) / deviation for a in ADVANTAGES])
    assert prepared.returns.tolist() == by_hand([a + v for a, v in zip(ADVANTAGES, VALUES, strict=True)])


def losses_by_hand() -> tuple[float, float]:
    policy_loss, value_loss = 0.0, 0.0
    for t in range(6):
        clipped_ratio = min(max(NEW_RATIOS[t], 0.8), 1.2)
        policy_loss += max(-ADVANTAGES[t] * NEW_RATIOS[t], -ADVANTAGES[t] * clipped_ratio)
        target = ADVANTAGES[t] + VALUES[t]
        held = min(max(NEW_VALUES[t], VALUES[t] - 0.3), VALUES[t] + 0.3)
        value_loss += max((NEW_VALUES[t] - target) ** 2, (held - target) ** 2) / 2
    return policy_loss / 6, value_loss / 6


@pytest.mark.parametrize("ent_coef", [0.0, 0.01])
def test_loss_by_hand(ent_coef: float) -> None:
    algorithm = ppo(ent_coef=ent_coef)
    prepared = algorithm.prepare(rollouts())
    new_logprobs = [old + math.log(ratio) for old, ratio in zip(OLD, NEW_RATIOS, strict=True)]
    algorithm.policy.logprobs.set(new_logprobs)
    algorithm.policy.values.set(NEW_VALUES)
    loss, metrics = algorithm.loss(prepared)
    policy_loss, value_loss = losses_by_hand()
    entropy = (0 + 1 + 2 + 3 + 4 + 5) / 6
    assert float(metrics["policy_loss"]) == by_hand(policy_loss)
    assert float(metrics["value_loss"]) == by_hand(value_loss)
    assert loss.item() == by_hand(policy_loss + 0.7 * value_loss - ent_coef * entropy)
    assert float(metrics["clip_fraction"]) == by_hand(5 / 6)
    assert float(metrics["ratio_deviation"]) == by_hand((0.5 + 0.5 + 0.1 + 0.4 + 0.4 + 0.3) / 6)
    approx_kl = sum(ratio - 1 - math.log(ratio) for ratio in NEW_RATIOS) / 6
    assert float(metrics["approx_kl"]) == by_hand(approx_kl)


def test_own_critic_gives_the_values_of_the_loss() -> None:
    algorithm = ppo(critic="policy")
    prepared = algorithm.prepare(rollouts())
    algorithm.critic.values.set(NEW_VALUES)
    loss, metrics = algorithm.loss(prepared)
    behind_cut = 0.9
    advantages = advantages_by_hand(rewards_by_hand([1.5, -0.5, -0.7], K1), behind_cut)
    expected = 0.0
    for value, old, advantage in zip(NEW_VALUES, VALUES, advantages, strict=True):
        held = min(max(value, old - 0.3), old + 0.3)
        expected += max((value - old - advantage) ** 2, (held - old - advantage) ** 2) / 2 / 6
    assert float(metrics["value_loss"]) == by_hand(expected)
    loss.backward()
    assert algorithm.critic.values.figures.grad.abs().sum() > 0
    assert algorithm.policy.values.figures.grad is None


def test_figures_of_a_batch_by_hand() -> None:
    algorithm = ppo()
    algorithm.prepare(rollouts())
    returns = [a + v for a, v in zip(ADVANTAGES, VALUES, strict=True)]

    def variance(x: list[float]) -> float:
        return sum((value - sum(x) / 6) ** 2 for value in x) / 6

    mean = (1.5 + 9.0 - 0.7) / 3
    expected = {
        "reward": mean,
        "reward_std": math.sqrt(((1.5 - mean) ** 2 + (9.0 - mean) ** 2 + (-0.7 - mean) ** 2) / 3),
        "kl": (0.3 - 0.1 - 1.0 + 0.6 + 0.0 - 0.5) / 3,
        "kl_coef": 0.1,
        "entropy": (1.0 + 0.5 + 2.0 + 0.3 + 1.2 + 0.7) / 6,
        "explained_variance": 1 - variance(ADVANTAGES) / variance(returns),
        "response_length": 2.0,
        "finished": 2 / 3,
        "repetition": 0.0,
    }
    assert algorithm.batch_metrics == by_hand(expected)


def test_adaptive_controller_moves_the_coefficient_of_the_next_batch() -> None:
    options = {"kl_controller": "adaptive", "kl_target": 0.7, "kl_horizon": 30.0, "critic": "policy"}
    algorithm, resumed = ppo(**options), ppo(**options)
    batch = rollouts().replace(logprobs=torch.tensor([old + 0.5 for old in OLD]))
    first, second = algorithm.prepare(batch), algorithm.prepare(batch)
    kl_of_a_response, share_of_horizon = (sum(K1) + 6 * 0.5) / 3, 3 / 30
    next_coef = 0.1 * (1 + (kl_of_a_response / 0.7 - 1) * share_of_horizon)
    assert first.token_rewards[0].item() == by_hand(-0.1 * 0.8)
    assert second.token_rewards[0].item() == by_hand(-next_coef * 0.8)
    assert algorithm.batch_metrics["kl_coef"] == by_hand(next_coef)
    resumed.load_state_dict(algorithm.state_dict())
    assert torch.equal(resumed.prepare(batch).token_rewards, algorithm.prepare(batch).token_rewards)


def test_log_probabilities_are_those_of_the_pass_that_there_is() -> None:
    """The sampler's are kept where no pass of the policy is needed, and computed where there are none."""
    others = rollouts().replace(logprobs=torch.tensor(REFERENCE))
    assert ppo(critic="policy").prepare(others).logprobs.tolist() == by_hand(REFERENCE)
    assert ppo(critic="shared").prepare(others).logprobs.tolist() == by_hand(OLD)
    without = rollouts().replace(logprobs=None)
    assert ppo(critic="policy").prepare(without).logprobs.tolist() == by_hand(OLD)


def test_prepare_leaves_its_batch() -> None:
    batch, untouched = rollouts(), rollouts()
    ppo(normalize_rewards=True, reward_clip=1.0).prepare(batch)
    for name in ("rewards", "logprobs", "response_ids", "lengths", "finished"):
        assert torch.equal(getattr(batch, name), getattr(untouched, name))
    assert batch.advantages is None
    assert batch.values is None


def test_modules_names_and_rates() -> None:
    shared, own = ppo(critic_lr_scale=4.0), ppo(critic="reward", critic_lr_scale=4.0)
    assert list(shared.modules()) == ["policy"]
    assert shared.learning_rate_scales() == {"policy.value_head": 4.0}
    assert list(own.modules()) == ["policy", "critic.scorer"]
    assert own.learning_rate_scales() == {"critic": 4.0}
    wrapped = {name: nn.Sequential(module) for name, module in own.modules().items()}
    own.bind(wrapped)
    assert own.policy.bound == {"policy": wrapped["policy"]}
    assert own.critic.bound == {"scorer": wrapped["critic.scorer"]}


@pytest.mark.parametrize("reward", [None, TableReward(None)])
def test_critic_from_a_reward_without_a_model_is_refused(reward: TableReward | None) -> None:
    with pytest.raises(InputError, match=r"optimizer\.critic: .*no model for a critic"):
        PPO(PPOOptions(critic="reward"), policy=policy(), reward=reward)


def test_stop_kl() -> None:
    assert ppo(stop_kl=0.0).keep_going({"approx_kl": 100.0})
    assert ppo(stop_kl=0.02).keep_going({"approx_kl": 0.02})
    assert not ppo(stop_kl=0.02).keep_going({"approx_kl": 0.021})


def test_adaptive_from_zero_is_refused() -> None:
    with pytest.raises(InputError, match="kl_coef"):
        PPOOptions(kl_controller="adaptive", kl_coef=0.0).check()
    PPOOptions(kl_controller="adaptive").check()


@pytest.mark.parametrize("critic", ["shared", "policy"])
def test_the_limit_is_the_end_where_nothing_finishes(critic: str) -> None:
    cut = rollouts().replace(finished=torch.tensor([False, False, False]))
    prepared = ppo(critic=critic).prepare(cut)
    rewards = rewards_by_hand([1.5 - 0.5, 9.0 - 0.5, -0.7 - 0.5], K1)
    assert prepared.token_rewards.tolist() == by_hand(rewards)
    assert prepared.advantages.tolist() == by_hand(advantages_by_hand(rewards, behind_cut=0.0))


def test_warns_once_when_hardly_anything_finishes(caplog: pytest.LogCaptureFixture) -> None:
    one_of_eleven = GroupBatch.from_ids(
        [[0]], [[[0]] * 11], [Group(Prompt(text="p"), ("0",) * 11)], finished=[True] + [False] * 10
    ).replace(rewards=torch.ones(11))
    ppo(bootstrap_truncated=False).prepare(one_of_eleven)
    ppo().prepare(rollouts())
    assert not caplog.records
    algorithm = ppo()
    algorithm.prepare(one_of_eleven)
    algorithm.prepare(one_of_eleven)
    assert len(caplog.records) == 1
    assert "only 1 of 11 responses finished" in caplog.text


def test_an_unscored_or_unprepared_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="rewards is missing: score and prepare"):
        ppo().prepare(rollouts().replace(rewards=None))
    with pytest.raises(ValueError, match="advantages is missing"):
        ppo().loss(rollouts())


def moved(algorithm: Any) -> tuple[GroupBatch, list[float]]:
    """The prepared batch, and the new log-probabilities, which the policy has by now."""
    prepared = algorithm.prepare(rollouts())
    new_logprobs = [old + math.log(ratio) for old, ratio in zip(OLD, NEW_RATIOS, strict=True)]
    algorithm.policy.logprobs.set(new_logprobs)
    algorithm.policy.values.set(NEW_VALUES)
    return prepared, new_logprobs


def test_loss_of_ppo_kl_and_its_coefficient() -> None:
    algorithm = PPOKL(PPOKLOptions(**SETTINGS, penalty_coef=0.4, penalty_target=0.1), policy=policy())
    prepared, _ = moved(algorithm)
    penalty = sum(ratio - 1 - math.log(ratio) for ratio in NEW_RATIOS) / 6
    ratio_loss = -sum(ratio * advantage for ratio, advantage in zip(NEW_RATIOS, ADVANTAGES, strict=True)) / 6
    loss, metrics = algorithm.loss(prepared)
    assert loss.item() == by_hand(ratio_loss + 0.4 * penalty + 0.7 * losses_by_hand()[1])
    # The last step's KL decides: over 1.5 of the target it doubles, under 1 / 1.5 it halves, between it stays.
    coefficients = []
    for last_kl in (0.16, 0.14, 0.07, 0.06, 0.01):
        assert algorithm.keep_going({"approx_kl": 99.0})
        assert algorithm.keep_going({**metrics, "approx_kl": last_kl})
        algorithm.prepare(rollouts())
        coefficients.append(algorithm.batch_metrics["penalty_coef"])
    assert coefficients == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.2])
    resumed = PPOKL(PPOKLOptions(**SETTINGS, penalty_coef=0.4, penalty_target=0.1), policy=policy())
    resumed.load_state_dict(algorithm.state_dict())
    resumed.prepare(rollouts())
    assert resumed.batch_metrics["penalty_coef"] == pytest.approx(0.1)


def test_loss_of_a2c() -> None:
    algorithm = A2C(A2COptions(**{**SETTINGS, "clip_range_value": 0.0}, ent_coef=0.02), policy=policy())
    prepared, new_logprobs = moved(algorithm)
    log_loss = -sum(logprob * advantage for logprob, advantage in zip(new_logprobs, ADVANTAGES, strict=True)) / 6
    targets = [advantage + value for advantage, value in zip(ADVANTAGES, VALUES, strict=True)]
    value_loss = sum((new - target) ** 2 for new, target in zip(NEW_VALUES, targets, strict=True)) / 2 / 6
    loss, _ = algorithm.loss(prepared)
    assert loss.item() == by_hand(log_loss + 0.7 * value_loss - 0.02 * 15 / 6)


def test_loss_of_trpo() -> None:
    settings = {**SETTINGS, "critic": "policy"}
    algorithm = TRPO(TRPOOptions(**settings), policy=policy())
    prepared, _ = moved(algorithm)
    algorithm.critic.values.set(NEW_VALUES)
    advantages = advantages_by_hand(rewards_by_hand([1.5, -0.5, -0.7], K1), behind_cut=0.9)
    ratio_loss = -sum(ratio * advantage for ratio, advantage in zip(NEW_RATIOS, advantages, strict=True)) / 6
    loss, metrics = algorithm.loss(prepared)
    value_loss = float(metrics["value_loss"])
    assert value_loss > 0
    assert loss.item() == by_hand(ratio_loss + 0.7 * value_loss)


@pytest.mark.parametrize(("target", "stays"), [(0.3, True), (0.29, False)])
def test_stop_kl_holds_for_ppo_kl_too(target: float, stays: bool) -> None:
    algorithm = PPOKL(PPOKLOptions(**SETTINGS, stop_kl=target), policy=policy())
    assert algorithm.keep_going({"approx_kl": 0.3}) == stays
