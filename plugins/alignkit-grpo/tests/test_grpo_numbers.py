"""Advantages and losses of one batch, worked out in plain floats: groups of three and two responses, one cut off.

The policy looks every figure up by token id. Group p: A is the tokens 0 1 2, B is 3 4, C is 5 (cut off at the limit of
4 tokens, or so the batch says). Group q: D is 6 7 8 9, E is 10.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_grpo.members import DAPO, GRPO, GSPO, REINFORCE, RLOO, DrGRPO, REINFORCEPlusPlus, ReMax

from alignkit.batch import GroupBatch
from alignkit.checking import OptionsError, option_names
from alignkit.interfaces import RewardSource
from alignkit.records import Group, Prompt
from alignkit.testing import ELEMENTARY, near
from alignkit.testing.tables import TablePolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.options import Sampling

OLD = [-1.0, -0.5, -2.0, -0.3, -1.2, -0.7, -0.1, -0.4, -0.9, -1.5, -2.2]
REFERENCE = [-1.3, -0.4, -1.0, -0.9, -1.2, -0.2, -0.6, -0.4, -1.0, -1.1, -1.2]
RATIOS = [1.5, 0.5, 1.1, 0.6, 1.4, 0.7, 1.3, 0.9, 0.75, 1.05, 1.6]
RAW = [1.5, 9.0, -0.7, 2.0, -4.0]
LENGTHS = [3, 2, 1, 4, 1]
OWNER = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4]
D = [old - ref for old, ref in zip(OLD, REFERENCE, strict=True)]
KL = [sum(D[0:3]), sum(D[3:5]), D[5], sum(D[6:10]), D[10]]


class GreedyPolicy(TablePolicy):
    """Its likeliest response to p is F, the token 1, cut off; to q it is G, the tokens 6 7 8 9."""

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        assert [prompt.plain for prompt in prompts] == ["p", "q"]
        assert (n, sampling.temperature, sampling.max_tokens) == (1, 0, 4)
        groups = [Group(prompts[0], ("F",)), Group(prompts[1], ("G",))]
        return GroupBatch.from_ids([[0], [1]], [[[1]], [[6, 7, 8, 9]]], groups, finished=[False, True])


class GreedyReward(RewardSource[Any]):
    """Scores the likeliest responses, or abstains on F."""

    def __init__(self, of_f: float | None = 3.0) -> None:
        super().__init__()
        self.of_f = of_f

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        assert [group.responses for group in groups] == [("F",), ("G",)]
        return [[self.of_f], [0.5]]


def rollouts(raw: Sequence[float] = RAW) -> GroupBatch:
    groups = [Group(Prompt(text="p"), ("A", "B", "C")), Group(Prompt(text="q"), ("D", "E"))]
    ids = [[[0, 1, 2], [3, 4], [5]], [[6, 7, 8, 9], [10]]]
    batch = GroupBatch.from_ids([[0], [1, 2]], ids, groups, finished=[True, True, False, True, True])
    return batch.replace(rewards=torch.tensor(raw), logprobs=torch.tensor(OLD), response_limit=4)


def make(component: type[Any], reward: RewardSource[Any] | None = None, **options: Any) -> Any:
    config = component.Config(**options)
    config.check()
    return component(config, policy=GreedyPolicy(OLD, REFERENCE), reward=reward or GreedyReward())


def advantages(component: type[Any], raw: Sequence[float] = RAW, **options: Any) -> list[float]:
    return make(component, **options).prepare(rollouts(raw)).advantages.tolist()


def by_token(of_responses: Sequence[float]) -> list[float]:
    return [of_responses[owner] for owner in OWNER]


def by_hand(expected: Any) -> Any:
    """Some ratios and sums over eleven tokens, of rewards up to 9."""
    return near(expected, terms=2 * ELEMENTARY + 11, scale=9.0)


MEANS = [(1.5 + 9.0 - 0.7) / 3] * 3 + [-1.0] * 2
DEVIATIONS = [r - m for r, m in zip(RAW, MEANS, strict=True)]
STDS = [math.sqrt(sum(d * d for d in DEVIATIONS[:3]) / 2)] * 3 + [math.sqrt(3.0**2 * 2)] * 2
BY_STD = [d / (s + 1e-4) for d, s in zip(DEVIATIONS, STDS, strict=True)]


@pytest.mark.parametrize("component", [GRPO, GSPO])
def test_rewards_are_normalised_by_group(component: type[Any]) -> None:
    assert advantages(component) == by_hand(by_token(BY_STD))


def test_dr_grpo_divides_by_no_deviation() -> None:
    assert advantages(DrGRPO) == by_hand(by_token(DEVIATIONS))


def test_normalised_by_the_deviation_of_the_batch() -> None:
    mean = sum(RAW) / 5
    deviation = math.sqrt(sum((r - mean) ** 2 for r in RAW) / 4) + 1e-4
    expected = by_token([d / deviation for d in DEVIATIONS])
    assert advantages(DrGRPO, normalize_advantages="batch") == by_hand(expected)


def test_the_deviation_of_a_batch_of_two_has_the_divisor_one() -> None:
    two = GroupBatch.from_ids([[0]], [[[0], [1, 2]]], [Group(Prompt(text="p"), ("A", "B"))]).replace(
        rewards=torch.tensor([3.0, 1.0]), logprobs=torch.tensor(OLD[:3]), response_limit=4
    )
    prepared = make(DrGRPO, normalize_advantages="batch").prepare(two)
    scaled = 1 / (math.sqrt(2) + 1e-4)
    assert prepared.advantages.tolist() == by_hand([scaled, -scaled, -scaled])


def test_without_a_known_limit_the_longest_response_is_it() -> None:
    prepared = make(DrGRPO).prepare(rollouts().replace(response_limit=0))
    assert prepared.response_limit == 4


def test_rloo_holds_each_reward_less_its_kl_against_the_others() -> None:
    r = [raw - 0.1 * kl for raw, kl in zip(RAW, KL, strict=True)]
    expected = [
        r[0] - (r[1] + r[2]) / 2, r[1] - (r[0] + r[2]) / 2, r[2] - (r[0] + r[1]) / 2, r[3] - r[4], r[4] - r[3],
    ]  # fmt: skip
    assert advantages(RLOO, kl_coef=0.1) == by_hand(by_token(expected))


def test_reinforce_holds_rewards_against_those_of_earlier_batches() -> None:
    algorithm = make(REINFORCE, kl_coef=0.1)
    r = [raw - 0.1 * kl for raw, kl in zip(RAW, KL, strict=True)]
    mean = sum(r) / 5
    assert algorithm.prepare(rollouts()).advantages.tolist() == by_hand(by_token([x - mean for x in r]))
    other = [0.0, 1.0, 2.0, 3.0, 4.0]
    second = [raw - 0.1 * kl for raw, kl in zip(other, KL, strict=True)]
    resumed = make(REINFORCE, kl_coef=0.1)
    resumed.load_state_dict(algorithm.state_dict())
    for each in (algorithm, resumed):
        assert each.prepare(rollouts(other)).advantages.tolist() == by_hand(by_token([x - mean for x in second]))
    both = (sum(r) + sum(second)) / 10
    assert algorithm.prepare(rollouts()).advantages.tolist() == by_hand(by_token([x - both for x in r]))


def to_go(of_tokens: Sequence[float]) -> list[float]:
    return [sum(x for u, x in enumerate(of_tokens) if u >= t and OWNER[u] == OWNER[t]) for t in range(len(OWNER))]


def test_reinforce_plus_plus_sums_what_follows_and_normalises_over_tokens() -> None:
    following = to_go([-0.1 * d for d in D])
    returns = [RAW[owner] + rest for owner, rest in zip(OWNER, following, strict=True)]
    mean = sum(returns) / 11
    deviation = math.sqrt(sum((r - mean) ** 2 for r in returns) / 11)
    expected = [(r - mean) / deviation for r in returns]
    assert advantages(REINFORCEPlusPlus, kl_coef=0.1) == by_hand(expected)


def test_credit_of_tokens_holds_scores_alone_against_the_group() -> None:
    following = to_go([-0.1 * d for d in D])
    expected = [DEVIATIONS[owner] + rest for owner, rest in zip(OWNER, following, strict=True)]
    assert advantages(DrGRPO, credit="token", kl_coef=0.1, kl_place="reward") == by_hand(expected)


def test_remax_holds_rewards_against_the_greedy_response() -> None:
    following = to_go([-0.1 * d for d in D])
    expected = [RAW[owner] - (3.0 if owner < 3 else 0.5) + rest for owner, rest in zip(OWNER, following, strict=True)]
    assert advantages(ReMax, kl_coef=0.1) == by_hand(expected)


def test_the_greedy_response_pays_the_same_penalties() -> None:
    found = advantages(ReMax, kl_coef=0.0, missing_eos_penalty=0.4, overlong_penalty=2.0, overlong_share=0.5)
    # Over the last half of 4 tokens: 3 tokens pay 1, 4 tokens pay 2. C and F are cut off.
    own = [1.5 - 1.0, 9.0, -0.7 - 0.4, 2.0 - 2.0, -4.0]
    greedy = [3.0 - 0.4] * 3 + [0.5 - 2.0] * 2
    assert found == by_hand(by_token([r - b for r, b in zip(own, greedy, strict=True)]))


def test_where_the_source_abstains_on_the_greedy_response_the_mean_stands_in() -> None:
    prepared = make(ReMax, GreedyReward(None), kl_coef=0.0).prepare(rollouts())
    baseline = [(1.5 + 9.0 - 0.7) / 3] * 3 + [0.5] * 2
    assert prepared.advantages.tolist() == by_hand(by_token([r - b for r, b in zip(RAW, baseline, strict=True)]))


def test_overlong_responses_pay_in_proportion() -> None:
    found = advantages(DAPO, overlong_share=0.75, overlong_penalty=0.6, normalize_advantages="none")
    # Free up to 1 token of 4, then a third of 0.6 for each: A pays 0.4, B 0.2, D 0.6.
    r = [1.5 - 0.4, 9.0 - 0.2, -0.7, 2.0 - 0.6, -4.0]
    means = [sum(r[:3]) / 3] * 3 + [sum(r[3:]) / 2] * 2
    assert found == by_hand(by_token([x - m for x, m in zip(r, means, strict=True)]))


def test_groups_of_equal_rewards_are_left_out_and_counted() -> None:
    algorithm = make(DAPO, overlong_penalty=0.0)
    prepared = algorithm.prepare(rollouts([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert [group.prompt.plain for group in prepared.groups] == ["q"]
    assert prepared.response_ids.tolist() == [6, 7, 8, 9, 10]
    root = math.sqrt(0.5)
    assert prepared.advantages.tolist() == by_hand([0.5 / (root + 1e-4)] * 4 + [-0.5 / (root + 1e-4)])
    assert algorithm.batch_metrics["kept"] == by_hand(2 / 5)
    assert algorithm.batch_metrics["reward"] == by_hand(0.8)


def test_cut_off_responses_are_left_out_of_the_loss_and_stay_in_the_baseline() -> None:
    prepared = make(DAPO, truncated="drop", overlong_penalty=0.0).prepare(rollouts())
    expected = [x for owner, x in zip(OWNER, by_token(BY_STD), strict=True) if owner != 2]
    assert prepared.advantages.tolist() == by_hand(expected)
    assert prepared.lengths.tolist() == [3, 2, 4, 1]


def test_where_nothing_is_left_a_group_without_advantages_is() -> None:
    algorithm = make(DAPO, overlong_penalty=0.0)
    prepared = algorithm.prepare(rollouts([0.3] * 5))
    assert prepared.num_groups == 1
    assert prepared.advantages.tolist() == [0.0] * 6
    assert algorithm.batch_metrics["kept"] == 0.0
    loss, _ = algorithm.loss(prepared)
    assert loss.item() == 0.0


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def loss_of(component: type[Any], **options: Any) -> tuple[float, dict[str, float], Any]:
    algorithm = make(component, **options)
    prepared = algorithm.prepare(rollouts())
    algorithm.policy.logprobs.set([old + math.log(ratio) for old, ratio in zip(OLD, RATIOS, strict=True)])
    loss, metrics = algorithm.loss(prepared)
    return loss.item(), {name: float(value) for name, value in metrics.items()}, prepared


def mean_of_means(tokens: Sequence[float]) -> float:
    return sum(x / LENGTHS[owner] for owner, x in zip(OWNER, tokens, strict=True)) / 5


def test_loss_of_grpo() -> None:
    new = [d + math.log(ratio) for d, ratio in zip(D, RATIOS, strict=True)]
    kl = [math.exp(-d) - 1 + d for d in new]
    tokens = [clipped(w, a, 0.2, 0.2) for w, a in zip(RATIOS, by_token(BY_STD), strict=True)]
    weighed = mean_of_means([k * w for k, w in zip(kl, RATIOS, strict=True)])
    loss, metrics, _ = loss_of(GRPO)
    assert loss == by_hand(mean_of_means(tokens) + 0.04 * weighed)
    assert metrics["kl_loss"] == by_hand(weighed)
    loss, _, _ = loss_of(GRPO, kl_importance=False)
    assert loss == by_hand(mean_of_means(tokens) + 0.04 * mean_of_means(kl))


def test_loss_of_dr_grpo_and_dapo() -> None:
    tokens = [clipped(w, a, 0.2, 0.2) for w, a in zip(RATIOS, by_token(DEVIATIONS), strict=True)]
    assert loss_of(DrGRPO)[0] == by_hand(sum(tokens) / 5 / 4)
    assert loss_of(DrGRPO, loss_length=3.0)[0] == by_hand(sum(tokens) / 5 / 3)
    tokens = [clipped(w, a, 0.2, 0.28) for w, a in zip(RATIOS, by_token(BY_STD), strict=True)]
    loss, metrics, _ = loss_of(DAPO, overlong_penalty=0.0)
    assert loss == by_hand(sum(tokens) / 11)
    outside = [w for w in RATIOS if w > 1.28 or w < 0.8]
    assert metrics["clip_fraction"] == by_hand(len(outside) / 11)
    assert metrics["ratio_deviation"] == by_hand(sum(abs(w - 1) for w in RATIOS) / 11)


def ratios_of_responses() -> list[float]:
    return [math.prod(w for owner, w in zip(OWNER, RATIOS, strict=True) if owner == s) for s in range(5)]


def test_loss_of_gspo() -> None:
    ratios = [w ** (1 / n) for w, n in zip(ratios_of_responses(), LENGTHS, strict=True)]
    expected = sum(clipped(w, a, 0.05, 0.1) for w, a in zip(ratios, BY_STD, strict=True)) / 5
    assert loss_of(GSPO, clip_range=0.05, clip_range_high=0.1)[0] == by_hand(expected)


def test_loss_of_rloo() -> None:
    held = [3 / 2 * d for d in DEVIATIONS[:3]] + [2 * d for d in DEVIATIONS[3:]]
    expected = sum(clipped(w, a, 0.2, 0.2) for w, a in zip(ratios_of_responses(), held, strict=True)) / 5
    assert loss_of(RLOO, kl_coef=0.0)[0] == by_hand(expected)


def test_loss_of_reinforce_and_remax() -> None:
    logprobs = [old + math.log(w) for old, w in zip(OLD, RATIOS, strict=True)]
    mean = sum(RAW) / 5
    expected = -sum(lp * (RAW[owner] - mean) for lp, owner in zip(logprobs, OWNER, strict=True)) / 5
    assert loss_of(REINFORCE, kl_coef=0.0)[0] == by_hand(expected)
    against = [RAW[owner] - (3.0 if owner < 3 else 0.5) for owner in OWNER]
    expected = -sum(lp * a for lp, a in zip(logprobs, against, strict=True)) / 5
    assert loss_of(ReMax, kl_coef=0.0)[0] == by_hand(expected)


def test_loss_without_clip_and_with_entropy() -> None:
    tokens = [-w * a for w, a in zip(RATIOS, by_token(DEVIATIONS), strict=True)]
    loss, _, _ = loss_of(DrGRPO, clip_range=1e9, aggregation="token", ent_coef=0.1)
    assert loss == by_hand(sum(tokens) / 11 - 0.1 * sum(range(11)) / 11)


def test_figures_of_a_batch() -> None:
    algorithm = make(GRPO)
    algorithm.prepare(rollouts())
    mean = sum(RAW) / 5
    expected = {
        "reward": mean,
        "reward_std": math.sqrt(sum((r - mean) ** 2 for r in RAW) / 5),
        "kl": sum(KL) / 5,
        "kl_coef": 0.04,
        "entropy": -sum(OLD) / 11,
        "response_length": 11 / 5,
        "finished": 4 / 5,
        "repetition": 0.0,
        "kept": 1.0,
    }
    assert algorithm.batch_metrics == by_hand(expected)


def test_the_coefficient_of_the_loss_is_the_controllers() -> None:
    algorithm = make(GRPO, kl_controller="linear", kl_coef=0.4, kl_coef_end=0.0, kl_horizon=10.0)
    losses = []
    for _ in range(3):
        prepared = algorithm.prepare(rollouts([0.0] * 5))
        losses.append(algorithm.loss(prepared)[0].item())
    kl = mean_of_means([math.exp(-d) - 1 + d for d in D])
    assert losses == by_hand([0.4 * kl, 0.2 * kl, 0.0])


def test_without_a_use_there_is_no_reference() -> None:
    assert make(DAPO).reference is None
    assert "kl" not in make(DAPO).batch_metrics
    for options in ({"kl_coef": 0.1}, {"max_kl": 5.0}, {"track_kl": True}):
        algorithm = make(DAPO, **options)
        algorithm.prepare(rollouts())
        assert algorithm.batch_metrics["kl"] == by_hand(sum(KL) / 5)


@pytest.mark.parametrize(
    ("component", "options", "key"),
    [
        (GRPO, {"group_size": 1}, "group_size"),
        (RLOO, {"group_size": 1}, "group_size"),
        (REINFORCE, {"dynamic_sampling": True}, "group_size"),
        (DAPO, {"dual_clip": 0.9}, "dual_clip"),
        (GRPO, {"surrogate": "truncated", "dual_clip": 2.0}, "dual_clip"),
        (GRPO, {"kl_target": 2.0, "kl_controller": "linear"}, "kl_target"),
        (GRPO, {"kl_coef_end": 0.1}, "kl_coef_end"),
        (GRPO, {"kl_coef_end": 0.04, "kl_controller": "linear"}, "kl_coef_end"),
        (DAPO, {"kl_estimator": "k2"}, "kl_estimator"),
        (GRPO, {"loss_length": 3.0}, "loss_length"),
        (GRPO, {"overlong_share": 0.5}, "overlong_share"),
        (GRPO, {"credit": "token"}, "credit"),
        (GRPO, {"kl_place": "reward"}, "kl_importance"),
        (DAPO, {"kl_controller": "target"}, "kl_coef"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    component: type[Any], options: dict[str, Any], key: str
) -> None:
    with pytest.raises(OptionsError) as error:
        component.Config(**options)
    assert [problem.key for problem in error.value.problems] == [(key,)]


def test_without_a_correction_there_is_one_pass() -> None:
    for component in (REINFORCE, ReMax):
        assert "n_epochs" not in option_names(component.Config)
        assert component.Config().n_epochs == 1
