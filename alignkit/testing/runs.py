"""Short runs of online algorithms in the real training loop, whole or interrupted. For tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit.components import Context
from alignkit.options import Sampling
from alignkit.records import Prompt
from alignkit.testing.tiny import TinyPolicy, TinyReward, TinyRewardOptions
from alignkit.training.engine import train
from alignkit.training.feeds import RolloutFeed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.interfaces import Optimizer
    from alignkit.records import Group

PROMPTS = [Prompt(text=text) for text in ("red", "green", "blue", "a longer one")]
DEFAULTS = {"learning_rate": 0.02, "batch_size": 4, "group_size": 8, "minibatch_size": 2}


class KilledError(Exception):
    """Stands for a killed process."""


def online_run(
    component: type[Any],
    folder: Path,
    *,
    kill_after: int = 0,
    resume: bool = False,
    letter: str = "a",
    texts: Sequence[Group] = (),
    **options: Any,
) -> tuple[Any, list[Mapping[str, float]]]:
    """Trains a new tiny policy to say a letter; returns the algorithm and its log.

    Args:
        kill_after: raises `KilledError` after this step; 0: never.
    """
    config = component.Config(**{**DEFAULTS, **options})
    policy, reward = TinyPolicy(context=Context(seed=1)), TinyReward(TinyRewardOptions(letter=letter))
    algorithm = component(config, policy=policy, reward=reward)
    log: list[Mapping[str, float]] = []

    def on_step(record: Mapping[str, float]) -> None:
        log.append(record)
        if record["step"] == kill_after:
            raise KilledError

    feed = RolloutFeed(PROMPTS, policy, reward, sampling=Sampling(max_tokens=8), options=config, seed=5)
    train(algorithm, feed, folder=folder, seed=5, on_step=on_step, resume=resume, texts=texts)
    return algorithm, log


def assert_goes_on_bit_for_bit(component: type[Any], folder: Path, **options: Any) -> None:
    """Fails unless a run that is killed in its third iteration and resumed ends exactly like an uninterrupted one."""
    whole, log = online_run(component, folder / "whole", iterations=4, **options)
    per_iteration = len(log) // 4
    options = {**options, "iterations": 4, "save_every": 1}
    last = 2 * per_iteration + 1
    try:
        online_run(component, folder / "part", kill_after=last, **options)
    except KilledError:
        pass
    else:
        raise AssertionError(f"the run had no step {last}")
    resumed, rest = online_run(component, folder / "part", resume=True, **options)
    assert [record["step"] for record in rest] == list(range(last, len(log) + 1))
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.state_dict() == whole.state_dict()
    for record, other in zip(log[last - 1 :], rest, strict=True):
        assert _comparable(record) == _comparable(other)


def weights(algorithm: Optimizer[Any]) -> torch.Tensor:
    """All trained values on one axis."""
    return torch.cat([p.detach().flatten() for module in algorithm.modules().values() for p in module.parameters()])


def _comparable(record: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in record.items() if "_per_s" not in name}
