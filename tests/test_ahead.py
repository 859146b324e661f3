"""`sampler.ahead = 1`: the next batch is sampled, with weights that are one batch older, while this one is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from threaded import Threaded

from alignkit import AheadOptions, Context, InputError, Policy, registry, train
from alignkit.algorithms import policy_logprobs
from alignkit.options import Sampling
from alignkit.plugins import Registration, Registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import recipe_of
from alignkit.runs.plan import plan
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.testing.runs import PROMPTS, KilledError, weights
from alignkit.training import engine
from alignkit.training.checkpoint import checkpoint_folders
from alignkit.training.feeds import RolloutFeed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignkit import GroupBatch

AHEAD = AheadOptions(ahead=1)
OPTIONS = {"learning_rate": 0.05, "iterations": 4, "batch_size": 4, "group_size": 4, "minibatch_size": 2}


class Trained:
    """A training of a tiny policy; `kill_after` ends it as SIGKILL would, after that step and before its checkpoint."""

    def __init__(
        self,
        folder: Path,
        name: str = "grpo",
        *,
        ahead: int = 1,
        waits: bool = False,
        kill_after: int = 0,
        resume: bool = False,
        **options: Any,
    ) -> None:
        self.prepared: list[GroupBatch] = []
        self.stepped: list[tuple[GroupBatch, Policy[Any]]] = []
        self.log: list[Mapping[str, float]] = []
        self.sampler = Threaded(AheadOptions(ahead=ahead), waits=waits)
        self.optimizer = self._watched(name, {**OPTIONS, **options})
        feed = RolloutFeed(
            PROMPTS,
            self.optimizer.policy,
            self.optimizer.reward,
            sampling=Sampling(max_tokens=6),
            options=self.optimizer.config,
            seed=5,
            sampler=self.sampler,
        )

        def on_step(record: Mapping[str, float]) -> None:
            self.log.append({key: value for key, value in record.items() if key != "tokens_per_s"})
            self.sampler.stepped.set()
            if record["step"] == kill_after:
                raise KilledError

        try:
            engine.train(self.optimizer, feed, folder=folder, seed=5, on_step=on_step, resume=resume)
        finally:
            self.sampler.stepped.set()
            self.sampler.close()

    def _watched(self, name: str, options: Mapping[str, Any]) -> Any:
        algorithm: Any = registry().load("optimizer", name)
        prepared, stepped = self.prepared, self.stepped

        class Watched(algorithm):  # type: ignore[misc]
            def prepare(self, batch: GroupBatch) -> GroupBatch:
                prepared.append(super().prepare(batch))
                return prepared[-1]

            def begin_step(self, batch: GroupBatch) -> None:
                stepped.append((batch, self.policy.reference()))
                super().begin_step(batch)

        policy = TinyPolicy(context=Context(seed=1))
        return Watched(algorithm.Config(**options), policy=policy, reward=TinyReward())


def test_a_batch_is_of_the_weights_before_the_batch_before_it(tmp_path: Path) -> None:
    found, plain = Trained(tmp_path / "ahead"), Trained(tmp_path / "plain", ahead=0)
    assert [batch.version for batch in found.prepared] == [0, 0, 1, 2]
    assert [batch.version for batch in plain.prepared] == [0, 1, 2, 3]
    for batch, other in zip(found.prepared, plain.prepared, strict=True):
        assert [group.prompt for group in batch.groups] == [group.prompt for group in other.groups]
        said = batch.sampler_logprobs
        assert said is not None
        own = policy_logprobs(found.sampler.copies[batch.version], batch, 10**6)
        assert torch.allclose(said, own, atol=1e-5)
    assert found.prepared[0].groups == plain.prepared[0].groups
    assert found.prepared[1].groups != plain.prepared[1].groups


def test_the_next_batch_is_sampled_while_this_one_is_trained(tmp_path: Path) -> None:
    assert Trained(tmp_path, waits=True).sampler.in_time == [True] * 3


def test_advantages_are_weighed_by_the_ratio_of_both_weights(tmp_path: Path) -> None:
    """Each response by the product of its tokens' ratios, from the policies that sampled and that prepare."""
    found = Trained(tmp_path, "reinforce", minibatch_size=4, kl_coef=0.0)
    apart = 0.0
    for batch, (part, policy) in zip(found.prepared, found.stepped, strict=True):
        now, then = (policy_logprobs(one, batch, 10**6) for one in (policy, found.sampler.copies[batch.version]))
        ratio = batch.sum_by_response(now - then).exp()[batch.response_index]
        assert batch.advantages is not None and part.advantages is not None
        expected = (batch.advantages * ratio).sort().values
        assert torch.allclose(part.advantages.sort().values, expected, rtol=1e-4, atol=1e-6)
        apart = max(apart, float((ratio - 1).abs().max()))
    assert apart > 0.1, "the weights did not move"


def test_the_ratio_in_the_loss_starts_at_one(tmp_path: Path) -> None:
    """What has moved since the batch was sampled is in its advantages alone: the product of both is the whole ratio."""
    found = Trained(tmp_path, "ppo", critic="policy")
    first_steps = found.log[:: len(found.log) // 4]
    assert [record["ratio_deviation"] for record in first_steps] == pytest.approx([0.0] * 4, abs=1e-5)
    assert max(record["sampler_kl"] for record in found.log) > 1e-4


@pytest.mark.parametrize("step", [2, 7, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3, 8))])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, step: int) -> None:
    """Also where the weights that sampled the next batch are gone: the checkpoint has the batch."""
    whole = Trained(tmp_path / "whole")
    with pytest.raises(KilledError):
        Trained(tmp_path / "part", kill_after=step, save_every=1)
    kept = checkpoint_folders(tmp_path / "part" / "checkpoints")
    assert [(one / "ahead.pt").exists() for one in kept[:1]] == ([step < 8] if step > 1 else [])
    resumed = Trained(tmp_path / "part", resume=True, save_every=1)
    assert torch.equal(weights(resumed.optimizer), weights(whole.optimizer))
    assert resumed.log == whole.log[step - 1 :]
    assert [batch.version for batch in resumed.prepared] == [0, 0, 1, 2][4 - len(resumed.prepared) :]


@pytest.mark.parametrize("name", ["online-dpo", "raft"])
def test_algorithms_that_can_not_weigh_rollouts_refuse_it(name: str) -> None:
    algorithm: Any = registry().load("optimizer", name)
    optimizer = algorithm(policy=TinyPolicy(), reward=TinyReward())
    with pytest.raises(InputError, match=r"sampler\.ahead: \w+ can't weigh the rollouts of older weights"):
        train(optimizer, PROMPTS, sampler=Threaded(AHEAD), progress=False)


def test_a_recipe_is_refused_before_anything_loads(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    added = [
        Registration("sampler", "threaded", Threaded, AheadOptions, "tests"),
        Registration("policy", "tiny", TinyPolicy, TinyPolicy.Config, "tests"),
        Registration("reward", "tiny", TinyReward, TinyReward.Config, "tests"),
    ]
    tables: dict[str, Any] = {
        "policy": {"plugin": "tiny"},
        "prompts": {"path": str(prompts)},
        "reward": {"plugin": "tiny"},
        "sampler": {"plugin": "threaded", "ahead": 1},
    }

    def planned(name: str) -> Any:
        recipe = recipe_of({**tables, "optimizer": {"plugin": name}}, flags={}, options={})
        return plan(resolve(recipe, Registry([*registry().registrations, *added])))

    with pytest.raises(InputError, match="online-dpo can't weigh"):
        planned("online-dpo")
    assert [stage.name for stage in planned("grpo")] == ["align", "eval"]


def test_the_policy_itself_can_not_sample_while_it_is_trained() -> None:
    with pytest.raises(InputError, match="the policy can't sample while it is trained"):
        resolve(recipe_of({}, flags={}, options={"sampler.ahead": 1}), registry())
