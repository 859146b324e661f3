"""A reference that follows the policy: its weights by hand, its guard, and that a resumed run has the same one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_grpo.members import RLOO
from alignkit_ppo.ppo import PPO

from alignkit.batch import GroupBatch
from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.options import Sampling
from alignkit.testing import TinyPolicy, TinyReward, assert_near, rounding, terms_of_network
from alignkit.testing.runs import PROMPTS, KilledError, assert_goes_on_bit_for_bit, online_run, weights
from alignkit.training.engine import train
from alignkit.training.feeds import RolloutFeed
from alignkit.training.reference import MovingReference

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignkit.interfaces import Policy


def flat(policy: Policy[Any]) -> Tensor:
    return torch.cat([p.detach().flatten() for module in policy.modules().values() for p in module.parameters()])


def algorithm(**options: Any) -> Any:
    return RLOO(RLOO.Config(**options), policy=TinyPolicy(context=Context(seed=1)), reward=TinyReward())


def set_to(optimizer: Any, value: float) -> None:
    """Gives every weight of the policy the same value."""
    with torch.no_grad():
        for parameter in optimizer.policy.modules()["policy"].parameters():
            parameter.fill_(value)


def follow(optimizer: Any, course: list[float], kl: list[float] | None = None) -> list[float]:
    """One weight of the reference after each step of a policy whose weights are those of the course."""
    set_to(optimizer, 0.0)
    optimizer.reference = optimizer.policy.reference()
    moving, seen = MovingReference(optimizer.config, optimizer), []
    for step, value in enumerate(course, start=1):
        optimizer.batch_metrics = {"kl": 0.0 if kl is None else kl[step - 1]}
        set_to(optimizer, value)
        moving.after_step(step)
        values = flat(optimizer.reference)
        assert bool((values == values[0]).all())
        seen.append(float(values[0]))
    return seen


def test_refreshed_every_third_step() -> None:
    assert follow(algorithm(reference_refresh_every=3), [1, 2, 3, 4, 5, 6, 7]) == [0, 0, 3, 3, 3, 6, 6]


def test_a_moving_average() -> None:
    found = follow(algorithm(reference_refresh_every=1, reference_decay=0.75), [1.0, 1.0, 5.0])
    assert found == [0.25, 0.4375, 0.75 * 0.4375 + 0.25 * 5]


def test_an_average_of_every_second_step() -> None:
    found = follow(algorithm(reference_refresh_every=2, reference_decay=0.5), [1.0, 2.0, 3.0, 4.0])
    assert found == [0, 1, 1, 2.5]


def test_the_reference_does_not_follow_beyond_the_limit() -> None:
    options = {"reference_refresh_every": 2, "reference_max_kl": 1.5}
    assert follow(algorithm(**options), [1, 2, 3, 4, 5, 6], kl=[0, 1.6, 0, 1.5, 9, 1.4]) == [0, 0, 0, 4, 4, 6]


def test_short_weights_are_averaged_in_float32() -> None:
    """A hundredth of a hundredth is lost in bfloat16 at 1, but not over a hundred steps."""
    optimizer = algorithm(reference_refresh_every=1, reference_decay=0.999)
    for policy in (optimizer.policy, optimizer.reference):
        policy.modules()["policy"].to(torch.bfloat16)
    set_to(optimizer, 1.0)
    optimizer.reference = optimizer.policy.reference()
    moving = MovingReference(optimizer.config, optimizer)
    set_to(optimizer, 2.0)
    for step in range(1, 101):
        moving.after_step(step)
    assert float(flat(optimizer.reference)[0]) == pytest.approx(2 - 0.999**100, abs=0.004)


def test_a_fixed_reference_stays_and_costs_no_checkpoint() -> None:
    optimizer = algorithm()
    before = flat(optimizer.reference)
    companions = optimizer.companions((), seed=0)
    assert not any(isinstance(companion, MovingReference) for companion in companions)
    set_to(optimizer, 1.0)
    assert all(not companion.after_step(1) for companion in companions)
    assert all(not companion.tensors() for companion in companions)
    assert torch.equal(flat(optimizer.reference), before)


def reference_course(tmp_path: Path, **options: Any) -> tuple[list[Tensor], list[Tensor], list[Any]]:
    """Weights of the policy and of the reference after each step of a real run, and its log."""
    optimizer, policies, references, log = algorithm(**options), [], [], []

    def on_step(record: Any) -> None:
        policies.append(flat(optimizer.policy))
        references.append(flat(optimizer.reference))
        log.append(record)

    sampling = Sampling(max_tokens=8)
    feed = RolloutFeed(PROMPTS, optimizer.policy, optimizer.reward, sampling=sampling, options=optimizer.config, seed=5)
    train(optimizer, feed, folder=tmp_path, seed=5, on_step=on_step)
    return policies, references, log


RUN = {"learning_rate": 0.02, "batch_size": 4, "minibatch_size": 2, "iterations": 3}


def test_the_engine_moves_it_after_its_steps_and_the_next_batch_is_held_to_it(tmp_path: Path) -> None:
    policies, references, log = reference_course(tmp_path, reference_refresh_every=2, **RUN)
    assert len(policies) == 6
    for step in (2, 4, 6):
        assert torch.equal(references[step - 1], policies[step - 1])
        assert not torch.equal(policies[step - 2], policies[step - 1])
    assert torch.equal(references[2], references[1])
    assert [record["reference_refreshes"] for record in log] == [0, 1, 1, 2, 2, 3]
    # Each batch is sampled from the policy that has just become the reference: what is left is rounding of the
    # log-probabilities of up to 8 letters.
    bound = rounding(terms_of_network(TinyPolicy().modules(), tokens=8), scale=8 * math.log(28))
    assert [abs(record["kl"]) < bound for record in log] == [True] * 6
    fixed = reference_course(tmp_path / "fixed", **RUN)[2]
    assert abs(fixed[-1]["kl"]) > 0.01


def test_the_engine_keeps_an_average(tmp_path: Path) -> None:
    start = flat(algorithm().policy)
    policies, references, _ = reference_course(tmp_path, reference_refresh_every=1, reference_decay=0.9, **RUN)
    expected = start
    for policy, reference in zip(policies, references, strict=True):
        expected = 0.9 * expected + 0.1 * policy
        assert_near(reference, expected, terms=3 * len(policies))


def test_the_guard_reads_the_kl_of_the_batch(tmp_path: Path) -> None:
    options = {"reference_refresh_every": 1, "reference_max_kl": 1e-4, "learning_rate": 0.05}
    _, references, log = reference_course(tmp_path, **{**RUN, **options})
    for number, record in enumerate(log[1:], start=1):
        moved = not torch.equal(references[number], references[number - 1])
        assert moved == (record["kl"] <= 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("component", "options"),
    [
        (PPO, {"reference_refresh_every": 3}),
        (RLOO, {"reference_refresh_every": 1, "reference_decay": 0.9, "reference_max_kl": 0.5}),
    ],
)
def test_goes_on_bit_for_bit(tmp_path: Path, component: type[Any], options: dict[str, Any]) -> None:
    assert_goes_on_bit_for_bit(component, tmp_path, n_epochs=2, **options)


def test_a_resumed_run_has_the_moved_reference(tmp_path: Path) -> None:
    options = {"reference_refresh_every": 2, "reference_decay": 0.5, "iterations": 2, "save_every": 1}
    whole, _ = online_run(RLOO, tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        online_run(RLOO, tmp_path / "part", kill_after=3, **options)
    resumed, _ = online_run(RLOO, tmp_path / "part", resume=True, **options)
    assert torch.equal(flat(resumed.reference), flat(whole.reference))
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(flat(whole.reference), flat(algorithm().reference))


class SharedReference(TinyPolicy):
    """A policy whose reference is made of its own weights, as with an adapter that is switched off."""

    def reference(self) -> SharedReference:
        return self


def test_a_reference_of_the_same_weights_is_refused() -> None:
    options = RLOO.Config(reference_refresh_every=1)
    optimizer = RLOO(options, policy=SharedReference(), reward=TinyReward())
    with pytest.raises(InputError, match=r'adapter off[\s\S]*policy.reference = "copy"'):
        MovingReference(optimizer.config, optimizer)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"reference_decay": 0.5}, "reference_decay"),
        ({"reference_max_kl": 0.5}, "reference_max_kl"),
        ({"reference_refresh_every": 2, "kl_coef": 0.0}, "reference_refresh_every"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as raised:
        RLOO.Config(**options).check()
    assert raised.value.where == where


def test_log_probabilities_of_a_moved_reference_are_its_own() -> None:
    optimizer = algorithm(reference_refresh_every=1)
    batch = optimizer.policy.generate(PROMPTS, n=2, sampling=Sampling(max_tokens=6), seed=0)
    assert isinstance(batch, GroupBatch)
    moving = MovingReference(optimizer.config, optimizer)
    set_to(optimizer, 0.1)
    moving.after_step(1)
    found = optimizer.with_reference(batch).ref_logprobs
    assert torch.equal(found, optimizer.policy.forward(batch).logprobs.detach())
