"""What a plugin does wrong carries its name and the method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.errors import InputError, PluginError, blamed
from alignkit.interfaces import Feed, Optimizer
from alignkit.options import TrainingOptions
from alignkit.records import Group, Prompt
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed
from alignkit.training.scores import checked_scores

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch

GROUPS = [Group(Prompt(text="ask"), ("yes", "no"))]


class Careless(Optimizer[TrainingOptions]):
    """Returns or raises what it is told to."""

    consumes = Feed.DEMONSTRATIONS
    returned: Any = None
    prepared: Any = None

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        return batch if self.prepared is None else self.prepared(batch)  # type: ignore[no-any-return]

    def loss(self, batch: GroupBatch) -> Any:
        logprobs = self.policy.forward(batch).logprobs
        return self.returned(logprobs)


def fail(*_: object) -> Any:
    raise KeyError("weight")


def leave(*_: object) -> Any:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda logprobs: (-logprobs, {}), r"found a loss of shape \[\d+\]"),
        (lambda logprobs: (-logprobs.sum(), None), "found no mapping of figures"),
        (lambda logprobs: -logprobs.sum(), "found Tensor"),
        (lambda logprobs: None, "found NoneType"),
        (fail, r"loss\(\) failed: KeyError: 'weight'"),
        (leave, r"loss\(\) failed: SystemExit: 0"),
    ],
)
def test_a_loss_that_is_none_names_the_algorithm(tmp_path: Path, returned: Any, reason: str) -> None:
    policy = TinyPolicy()
    algorithm = Careless(TrainingOptions(), policy=policy)
    algorithm.returned = returned
    with pytest.raises(PluginError, match=f"optimizer Careless.*{reason}"):
        train(algorithm, OfflineFeed(GROUPS, policy), folder=tmp_path, seed=0)


def test_an_error_in_prepare_names_the_algorithm(tmp_path: Path) -> None:
    policy = TinyPolicy()
    algorithm = Careless(TrainingOptions(), policy=policy)
    algorithm.prepared = fail
    with pytest.raises(PluginError, match=r"optimizer Careless prepare\(\) failed: KeyError: 'weight'"):
        train(algorithm, OfflineFeed(GROUPS, policy), folder=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda groups: None, r"score\(\) failed: TypeError"),
        (lambda groups: [None], "group 0: None for 2 responses"),
        (lambda groups: [[1.0]], "group 0: 1 scores for 2 responses"),
        (lambda groups: [torch.zeros(2)], r"group 0: tensor\(.* for 2 responses"),
        (leave, r"score\(\) failed: SystemExit: 0"),
    ],
)
def test_a_reward_that_returns_something_else_is_named(
    monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str
) -> None:
    reward = TinyReward()
    monkeypatch.setattr(reward, "score", answer)
    with pytest.raises(PluginError, match=f"reward TinyReward.*{reason}"):
        checked_scores(reward, GROUPS)


def test_what_a_user_or_the_system_ends_is_not_blamed_on_a_plugin() -> None:
    for error in (KeyboardInterrupt(), SystemExit(143), InputError("wrong")):
        with pytest.raises(type(error)), blamed("reward Mine"):
            raise error
