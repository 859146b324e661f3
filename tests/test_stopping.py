"""Runs that end early: the rules on sequences made by hand, and in the training loop."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_grpo.members import RLOO

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.interfaces import RewardSource
from alignkit.options import EarlyStopOptions, Sampling, StopOptions, specs_of
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.testing.known_answer import ScoreOf
from alignkit.testing.runs import PROMPTS, KilledError, weights
from alignkit.training import checkpoint as checkpoints
from alignkit.training.engine import train
from alignkit.training.feeds import RolloutFeed
from alignkit.training.stopping import best_of, error_of_difference, fall_of_gold, has_plateaued, moving_means

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.outputs import TrainResult
    from alignkit.records import Group


@pytest.mark.parametrize(
    ("rewards", "batches", "delta", "ends"),
    [
        ([1, 2, 3, 4], 0, 0.0, False),
        ([1, 1, 1], 2, 0.0, False),
        ([1, 1, 1, 1], 2, 0.0, True),
        ([1, 2, 3, 4], 2, 1.5, False),
        ([1, 2, 3, 4], 2, 2.0, True),
        ([9, 9, 1, 2, 3, 4], 2, 1.5, False),
        ([1, 2, 3, 3, 3], 1, 0.0, True),
        ([0, 0, 0, 4, 1, 2], 2, 0.0, True),
        ([0, 0, 0, 4, 1, 2], 3, 0.0, False),
        ([4, 3, 2, 1], 2, 0.0, True),
    ],
)
def test_a_plateau_is_no_rise_between_two_runs_of_batches(
    rewards: list[float], batches: int, delta: float, ends: bool
) -> None:
    assert has_plateaued(rewards, batches, delta) is ends


def test_moving_means_and_the_best_of_them() -> None:
    assert moving_means([1, 2, 6, 0], 2) == [1.5, 4, 3]
    assert moving_means([1, 2], 3) == []
    assert best_of([1, 4, 3, 4]) == 1


@pytest.mark.parametrize(
    ("gold", "rewards", "window", "fall"),
    [
        ([1, 3, 1], [1, 2, 3], 1, 2.0),
        ([1, 3, 1], [1, 2, 2], 1, 0.0),
        ([1, 3, 1], [1, 3, 2], 1, 0.0),
        ([1, 3, 1, 3], [1, 2, 3, 4], 1, 0.0),
        ([1, 3, 3, 1], [1, 2, 3, 4], 2, 1.0),
        ([3, 1], [1, 2], 3, 0.0),
        ([], [], 1, 0.0),
    ],
)
def test_over_optimisation_is_gold_that_falls_while_the_reward_rises(
    gold: list[float], rewards: list[float], window: int, fall: float
) -> None:
    assert fall_of_gold(gold, rewards, window) == fall


def test_the_error_of_a_difference_of_means_is_known_from_neighbours() -> None:
    assert error_of_difference([0, 2, 1], 2) == math.sqrt((4 + 1) / 2 / 2)
    assert error_of_difference([7], 2) == error_of_difference([], 1) == 0
    draw = random.Random(3)
    scatter = [draw.gauss(0.001 * number, 2.0) for number in range(40_000)]
    # Two independent means of 5 differ by sqrt(2 / 5) deviations; four standard errors of this estimate are 1.8%.
    assert error_of_difference(scatter, 5) == pytest.approx(2.0 * math.sqrt(2 / 5), rel=0.018)


class Scripted(RewardSource[Any]):
    """What was written down for each batch, give or take a half."""

    def __init__(self, script: Sequence[float | None]) -> None:
        super().__init__()
        self.script = list(script)

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        value = self.script.pop(0)
        halves = [[0.5 - i % 2 for i in range(len(group.responses))] for group in groups]
        return [[None if value is None else value + half for half in row] for row in halves]


class Course:
    """A run with its log and the weights after each step."""

    def __init__(self, folder: Path, reward: RewardSource[Any], gold: RewardSource[Any] | None, **options: Any) -> None:
        defaults = {"learning_rate": 0.02, "batch_size": 4, "group_size": 8, "minibatch_size": 2, "save_every": 1}
        self.config = RLOO.Config(**{**defaults, "iterations": 8, **options})
        self.folder, self.reward, self.gold = folder, reward, gold
        self.log: list[dict[str, float]] = []
        self.notices: list[str] = []
        self.weights: list[torch.Tensor] = []

    def run(self, *, kill_after: int = 0, resume: bool = False) -> tuple[TrainResult, torch.Tensor]:
        policy = TinyPolicy(context=Context(seed=1))
        context = Context(build=lambda role, spec: self.gold)  # type: ignore[arg-type, return-value]
        algorithm = RLOO(self.config, context, policy=policy, reward=self.reward)  # type: ignore[arg-type]
        self.weights = [weights(algorithm).clone()]

        def on_step(record: dict[str, float]) -> None:
            self.log.append(record)
            self.weights.append(weights(algorithm).clone())
            if record["step"] == kill_after:
                raise KilledError

        options: Any = self.config
        feed = RolloutFeed(PROMPTS, policy, self.reward, sampling=Sampling(max_tokens=8), options=options, seed=5)
        result = train(
            algorithm, feed, folder=self.folder, seed=5, on_step=on_step, on_notice=self.notices.append, resume=resume
        )
        return result, weights(algorithm)


GOLD = {"plugin": "gold"}


def test_a_run_ends_where_its_reward_stands_still(tmp_path: Path) -> None:
    course = Course(tmp_path, Scripted([1, 2, 3, 4, 4, 4, 4, 9]), None, stop=StopOptions(plateau=2))
    result, final = course.run()
    assert result.steps == 6 * 2 == len(course.log)
    assert result.stopped.startswith("the reward has reached a plateau: its mean over the last 2 batches, 4,")
    assert course.notices[-1] == f"stopped after step 12: {result.stopped}"
    assert torch.equal(final, course.weights[12])
    assert [record["reward"] for record in course.log[::2]] == [1, 2, 3, 4, 4, 4]


def test_a_run_that_goes_on_rising_does_not_end(tmp_path: Path) -> None:
    stop = StopOptions(plateau=2, plateau_delta=1.5)
    result, _ = Course(tmp_path, Scripted(range(8)), None, stop=stop).run()
    assert (result.steps, result.stopped) == (16, "")


def test_a_run_ends_where_gold_falls_and_takes_the_weights_of_its_best(tmp_path: Path) -> None:
    gold = Scripted([0, 2, 4, 3, None, 3, 1, 9])
    stop = StopOptions(gold=GOLD, gold_fall=1.0, gold_window=2)
    course = Course(tmp_path, Scripted(range(8)), gold, stop=stop)
    result, final = course.run()
    assert result.steps == 6 * 2, "moving means 1, 3, 3.5, 3, 2: the last is 1.5 below the best"
    assert "fell from 3.5 to 2 while the reward rose; the best weights, after step 6" in result.stopped
    assert torch.equal(final, course.weights[6])
    assert not torch.equal(final, course.weights[12])
    assert [record.get("gold_reward") for record in course.log[::2]] == [0, 2, 4, 3, None, 3]
    assert [record.get("gold_drop") for record in course.log[::2]] == [
        0, 0, 0, 0, None, pytest.approx(0.5 / math.sqrt((4 + 4 + 1 + 0) / 4 / 2)),
    ]  # fmt: skip
    (best,) = checkpoints.checkpoint_folders(tmp_path / "checkpoints" / "best")
    assert best.name == "step-00000006"


def test_gold_that_is_only_measured_keeps_the_best_and_ends_nothing(tmp_path: Path) -> None:
    course = Course(tmp_path, Scripted(range(8)), Scripted([5, *[0] * 7]), stop=StopOptions(gold=GOLD, gold_window=1))
    result, final = course.run()
    assert (result.steps, result.stopped) == (16, "")
    assert torch.equal(final, course.weights[16])
    (best,) = checkpoints.checkpoint_folders(tmp_path / "checkpoints" / "best")
    saved = checkpoints.load_tensors(best, "modules")
    assert torch.equal(torch.cat([tensor.flatten() for tensor in saved.values()]), course.weights[0])


def over_optimising(folder: Path) -> Course:
    """The policy learns to say more and more a; gold likes some of them, up to a third."""
    gold = ScoreOf(lambda text: 1 - abs(text.count("a") / max(len(text), 1) - 0.33))
    stop = StopOptions(gold=GOLD, gold_fall=0.05, gold_window=2)
    return Course(folder, TinyReward(), gold, stop=stop, iterations=60, kl_coef=0.0, learning_rate=0.05)


def test_a_policy_that_is_over_optimised_is_stopped_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = over_optimising(tmp_path / "whole")
    result, final = whole.run()
    assert "over-optimised" in result.stopped
    assert result.steps < 100
    golds = [record["gold_reward"] for record in whole.log[::2]]
    means = moving_means(golds, 2)
    best_step = 2 * (1 + means.index(max(means)))
    assert 0 < best_step < result.steps
    assert torch.equal(final, whole.weights[best_step])
    part = over_optimising(tmp_path / "part")
    with pytest.raises(KilledError):
        part.run(kill_after=result.steps - 3)
    resumed, again = part.run(resume=True)
    assert resumed.stopped == result.stopped
    assert torch.equal(again, final)
    ended, weights_again = part.run(resume=True)
    assert ended.stopped == result.stopped
    assert (ended.steps, ended.tokens) == (result.steps, 0)
    assert torch.equal(weights_again, final)


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"^EarlyStopOptions stop\.plateau_delta: "):
        EarlyStopOptions(stop={"plateau_delta": 0.1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^StopOptions gold_fall: "):
        StopOptions(gold_fall=0.1)
    stop = StopOptions(gold=GOLD, gold_fall=0.1, plateau=3, plateau_delta=0.1)
    assert list(specs_of(EarlyStopOptions(stop=stop))) == [("stop.gold", "reward", GOLD)]
    assert list(specs_of(EarlyStopOptions())) == []
