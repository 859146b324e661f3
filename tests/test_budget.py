"""Budgets: where a training ends, what it has spent by hand, and the learning rate that follows it."""

from __future__ import annotations

from math import cos, pi
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.interfaces import Feed
from alignkit.ops.flops import count_pass, counted_flops
from alignkit.options import Sampling
from alignkit.plugins import registry
from alignkit.testing import TinyOptions, TinyPolicy, TinyReward
from alignkit.testing.material import groups_for
from alignkit.testing.runs import PROMPTS, weights
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed, RolloutFeed

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.records import Group

MANY = 1_000_000


def policy() -> TinyPolicy:
    return TinyPolicy(TinyOptions(alphabet="ab", hidden=4, window=2), Context(seed=1))


def rankings() -> list[Group]:
    return list(groups_for(Feed.RANKINGS))


def offline(folder: Path, *, resume: bool = False, stop: int = 0, **options: Any) -> tuple[Any, list[Any], Any]:
    """A DPO training on two rankings a step: its result, the figures of its steps, and the algorithm."""
    component = registry().load("optimizer", "dpo")
    algorithm = component(
        component.Config(**{"minibatch_size": 2, "n_epochs": MANY, "save_every": 1, "warmup": 0.0, **options}),
        policy=policy(),
    )
    log: list[Any] = []

    def on_step(record: dict[str, float]) -> None:
        log.append(record)
        if record["step"] == stop:
            raise KeyboardInterrupt

    feed = OfflineFeed(rankings(), algorithm.policy)
    try:
        result = train(algorithm, feed, folder=folder, seed=3, on_step=on_step, resume=resume)
    except KeyboardInterrupt:
        result = None
    return result, log, algorithm


def tokens_of(groups: list[Group]) -> int:
    """Response tokens: letters, and the end of each."""
    return sum(len(text) + 1 for group in groups for text in group.responses)


def test_a_training_ends_at_the_step_that_has_spent_its_tokens(tmp_path: Path) -> None:
    groups = rankings()
    whole = tokens_of(groups)
    once, log, _ = offline(tmp_path / "once", n_epochs=1)
    assert once.spent["response_tokens"] == whole
    assert once.spent["prompts"] == len(groups)
    assert once.stopped == ""
    result, longer, _ = offline(tmp_path / "more", budget={"response_tokens": whole + 1})
    assert result.steps == len(longer) == len(log) + 1
    assert result.spent["prompts"] == len(groups) + min(2, len(groups))
    assert result.stopped == f"{whole + 1} response tokens are spent"
    exact, _, _ = offline(tmp_path / "exact", budget={"response_tokens": whole})
    assert exact.steps == once.steps


def test_the_learning_rate_follows_what_is_spent(tmp_path: Path) -> None:
    whole = tokens_of(rankings())
    _, log, _ = offline(tmp_path, learning_rate=0.1, lr_schedule="cosine", budget={"response_tokens": 2 * whole})
    once, _, _ = offline(tmp_path / "once", n_epochs=1)
    steps = once.steps
    assert len(log) == 2 * steps
    assert log[0]["learning_rate"] == 0.1
    # After the first pass half of the budget is spent, whatever the million of planned passes.
    assert log[steps]["learning_rate"] == pytest.approx(0.1 * (1 + cos(pi / 2)) / 2, rel=1e-5)
    rates = [record["learning_rate"] for record in log]
    assert rates == sorted(rates, reverse=True)


def test_seconds_end_a_training_that_has_succeeded(tmp_path: Path) -> None:
    result, log, _ = offline(tmp_path, budget={"seconds": 1e-9})
    assert len(log) == 1
    assert result.stopped == "1e-09 seconds are spent"
    assert result.spent["seconds"] >= 1e-9
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] != []


def flops_by_hand(network: torch.nn.Module, batch: Any) -> tuple[int, int]:
    """(parameters, tokens with each prompt once)."""
    return sum(p.numel() for p in network.parameters()), len(batch.prompt_ids) + len(batch.response_ids)


def test_a_pass_costs_2_flops_per_parameter_and_token_and_learning_4_more() -> None:
    model = policy()
    batch = model.encode(rankings())
    size, tokens = flops_by_hand(model.modules()["policy"], batch)
    before = counted_flops()
    with torch.no_grad():
        model.forward(batch)
    assert counted_flops() - before == 2 * size * tokens
    model.forward(batch)
    assert counted_flops() - before == (2 + 6) * size * tokens
    first = next(iter(model.modules()["policy"].parameters()))
    first.requires_grad_(False)
    model.forward(batch)
    assert counted_flops() - before == (2 + 6 + 6) * size * tokens - 2 * first.numel() * tokens
    model.reference().forward(batch)
    assert counted_flops() - before == (2 + 6 + 6 + 2) * size * tokens - 2 * first.numel() * tokens


def test_weights_of_4_bits_count_as_what_they_stand_for() -> None:
    linear, batch = torch.nn.Linear(4, 3, bias=False), policy().encode(rankings())
    packed = torch.nn.Parameter(torch.zeros(6, 1), requires_grad=False)
    packed.quant_state = torch.nn.Parameter(torch.zeros(3, 4))
    linear.weight = packed
    before = counted_flops()
    count_pass({"a": linear, "twice": linear}, batch)
    assert counted_flops() - before == 2 * 12 * (len(batch.prompt_ids) + batch.num_tokens)


def test_flops_of_dpo_are_those_of_its_passes(tmp_path: Path) -> None:
    result, _, algorithm = offline(tmp_path, n_epochs=3)
    size, tokens = flops_by_hand(algorithm.policy.modules()["policy"], algorithm.policy.encode(rankings()))
    # The reference once, and three times the policy.
    assert result.spent["flops"] == 2 * size * tokens + 3 * 6 * size * tokens
    limited, log, _ = offline(tmp_path / "limited", budget={"flops": 2 * size * tokens + 1})
    assert len(log) == 1
    assert limited.stopped.endswith("flops are spent")


def online(folder: Path, **options: Any) -> tuple[Any, list[Any], list[int]]:
    """An RLOO training of 2 steps a batch: its result, its figures, and the response tokens of each batch."""
    component = registry().load("optimizer", "rloo")
    config = component.Config(**{"batch_size": 4, "minibatch_size": 2, "group_size": 2, "n_epochs": 1, **options})
    trained, reward = policy(), TinyReward()
    algorithm = component(config, policy=trained, reward=reward)
    log: list[Any] = []
    sampled: list[int] = []
    generate = trained.generate

    def counted(*given: Any, **named: Any) -> Any:
        batch = generate(*given, **named)
        sampled.append(int(batch.lengths.sum()))
        return batch

    trained.generate = counted  # type: ignore[method-assign]
    feed = RolloutFeed(PROMPTS, trained, reward, sampling=Sampling(max_tokens=8), options=config, seed=5)
    return train(algorithm, feed, folder=folder, seed=5, on_step=log.append), log, sampled


def test_an_online_training_ends_with_the_batch_that_has_sampled_its_tokens(tmp_path: Path) -> None:
    three, _, sampled = online(tmp_path / "three", iterations=3)
    assert len(sampled) == 3
    assert three.spent["response_tokens"] == sum(sampled)
    assert three.spent["prompts"] == 12
    limit = sum(sampled[:2])
    exact, log, _ = online(tmp_path / "exact", iterations=9, budget={"response_tokens": limit}, learning_rate=0.0)
    assert len(log) == 4
    assert exact.stopped == f"{limit} response tokens are spent"
    _, log, drawn = online(tmp_path / "more", iterations=9, budget={"response_tokens": limit + 1}, learning_rate=0.0)
    assert (len(log), len(drawn)) == (6, 3)


def test_an_online_training_out_of_seconds_samples_no_more(tmp_path: Path) -> None:
    result, log, sampled = online(tmp_path, iterations=9, budget={"seconds": 1e-9})
    assert (len(log), len(sampled)) == (1, 1)
    assert result.spent["response_tokens"] == sampled[0]


def test_a_resumed_training_has_spent_what_an_unbroken_one_has(tmp_path: Path) -> None:
    budget = {"response_tokens": 3 * tokens_of(rankings())}
    whole, log, one = offline(tmp_path / "whole", budget=budget)
    offline(tmp_path / "broken", budget=budget, stop=3)
    again, rest, other = offline(tmp_path / "broken", budget=budget, resume=True)
    assert [record["learning_rate"] for record in rest] == [record["learning_rate"] for record in log[2:]]
    assert again.steps == whole.steps
    assert torch.equal(weights(one), weights(other))
    assert {**again.spent, "seconds": 0} == {**whole.spent, "seconds": 0}


class Uncounted(TinyPolicy):
    counts_flops = False


def test_flops_of_a_policy_that_counts_none_are_refused(tmp_path: Path) -> None:
    component = registry().load("optimizer", "dpo")
    algorithm = component(component.Config(budget={"flops": 1.0}), policy=Uncounted(TinyOptions(alphabet="ab")))
    with pytest.raises(InputError, match="Uncounted doesn't count its FLOPs"):
        train(algorithm, OfflineFeed(rankings(), algorithm.policy), folder=tmp_path, seed=0)
