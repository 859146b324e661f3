"""The training loop: one gradient for any micro-batches, exact resume after SIGKILL, stops that lose nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.algorithms import OnlineAlgorithm, OnlineOptions
from alignkit.errors import AlignkitError, CheckpointError, InputError, Interrupted, StoppedByCheck
from alignkit.interfaces import Feed, Optimizer
from alignkit.options import Sampling, TrainingOptions
from alignkit.records import Group, Prompt
from alignkit.testing import TinyPolicy, TinyReward, adam_rounding, near, terms_of_network
from alignkit.training import checkpoint as checkpoints
from alignkit.training.adam import parameter_groups
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed, RolloutFeed
from alignkit.training.scores import score_batch

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics

WORDS = ["red", "green", "blue", "a longer reply.", "no", "yes please"]


def demonstrations(count: int = 12) -> list[Group]:
    draw = random.Random(3)
    return [Group(Prompt(text=f"ask {draw.choice(WORDS)}"), (draw.choice(WORDS),)) for _ in range(count)]


class Likelihood(Optimizer[TrainingOptions]):
    """Maximum likelihood, the simplest algorithm there is."""

    consumes = Feed.DEMONSTRATIONS

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        logprobs = self.policy.forward(batch).logprobs
        return -batch.token_mean(logprobs), {"responses": batch.response_mean(torch.ones(batch.num_responses))}


@dataclass(frozen=True, kw_only=True)
class ReinforceOptions(OnlineOptions):
    """No further options."""


class Reinforce(OnlineAlgorithm[ReinforceOptions]):
    """Reward-weighted likelihood with state of its own, to see that it survives a kill."""

    couples_responses = False
    baseline = 0.0

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        assert batch.rewards is not None
        advantages = (batch.rewards - self.baseline)[batch.response_index]
        self.baseline = 0.5 * self.baseline + 0.5 * float(batch.rewards.mean())
        self.batch_metrics = {"kl": 7.0}
        return batch.replace(advantages=advantages)

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        assert batch.advantages is not None
        return -batch.token_mean(batch.advantages * self.policy.forward(batch).logprobs), {}

    def state_dict(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def load_state_dict(self, state: Any) -> None:
        self.baseline = state["baseline"]


def policy_in_float64() -> TinyPolicy:
    """AdamW makes whole steps of what rounding leaves of gradients that are zero; in float64 these are harmless."""
    policy = TinyPolicy()
    policy.modules()["policy"].double()
    return policy


def offline(tmp: Path, *, resume: bool = False, **options: Any) -> tuple[TinyPolicy, dict[str, Any]]:
    torch.manual_seed(0)
    policy = policy_in_float64()
    config = TrainingOptions(**{"learning_rate": 0.01, "minibatch_size": 4, "n_epochs": 3, "save_every": 1, **options})
    optimizer = Likelihood(config, policy=policy)
    result = train(optimizer, OfflineFeed(demonstrations(), policy), folder=tmp, seed=5, resume=resume)
    return policy, {"steps": result.steps, **result.metrics}


def online(tmp: Path, *, resume: bool = False, **options: Any) -> TinyPolicy:
    torch.manual_seed(0)
    policy, reward = TinyPolicy(), TinyReward()
    defaults = {"learning_rate": 0.01, "minibatch_size": 2, "n_epochs": 2, "save_every": 1, "batch_size": 4}
    config = ReinforceOptions(**{**defaults, "iterations": 4, "group_size": 2, **options})
    optimizer = Reinforce(config, policy=policy, reward=reward)
    prompts = [Prompt(text=word) for word in WORDS]
    feed = RolloutFeed(prompts, policy, reward, sampling=Sampling(max_tokens=8), options=config, seed=5)
    train(optimizer, feed, folder=tmp, seed=5, resume=resume)
    return policy


def weights(policy: TinyPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for module in policy.modules().values() for p in module.parameters()])


def same_weights(one: torch.Tensor, other: torch.Tensor, *, steps: int) -> bool:
    """Whether runs at a learning rate of 0.01 differ by no more than rounding."""
    terms = terms_of_network(TinyPolicy().modules(), tokens=100)
    return torch.allclose(one, other, rtol=0, atol=adam_rounding(terms, steps=steps, learning_rate=0.01))


def test_the_result_is_the_same_for_any_micro_batch_size(tmp_path: Path) -> None:
    whole, metrics = offline(tmp_path / "a", max_tokens=100_000)
    pieces, metrics_in_pieces = offline(tmp_path / "b", max_tokens=1)
    assert same_weights(weights(whole), weights(pieces), steps=9)
    for name in ("loss", "responses"):
        assert metrics[name] == near(metrics_in_pieces[name], terms=100)
    assert metrics["responses"] == near(1.0, terms=4)


def test_the_loss_falls_and_steps_are_counted(tmp_path: Path) -> None:
    _, first = offline(tmp_path / "a", n_epochs=1)
    _, last = offline(tmp_path / "b", n_epochs=40)
    assert first["steps"] == 3
    assert last["steps"] == 120
    assert last["loss"] < first["loss"] - 0.5


def test_zero_learning_rate_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = weights(policy_in_float64())
    assert torch.equal(weights(offline(tmp_path, learning_rate=0.0)[0]), before)


def test_every_group_is_used_once_an_epoch(tmp_path: Path) -> None:
    seen: list[str] = []

    class Recording(Likelihood):
        def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
            seen.extend(group.meta["id"] for group in batch.groups)
            return super().loss(batch)

    groups = [Group(g.prompt, g.responses, meta={"id": str(i)}) for i, g in enumerate(demonstrations(10))]
    policy = TinyPolicy()
    options = TrainingOptions(minibatch_size=3, n_epochs=2)
    train(Recording(options, policy=policy), OfflineFeed(groups, policy), folder=tmp_path, seed=0)
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(str(i) for i in range(10))
    assert seen[:10] != seen[10:]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_engine, alignkit.training.engine as engine
from pathlib import Path
original, steps = engine.Engine._step, 0
def step(self, part, *, empty):
    global steps
    steps += 1
    if steps == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, part, empty=empty)
engine.Engine._step = step
test_engine.{run}(Path({folder!r}))
"""


@pytest.mark.parametrize("run", [pytest.param("offline", marks=pytest.mark.slow), "online"])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path: Path, run: str) -> None:
    at = random.randrange(2, 9)
    tests = os.path.dirname(__file__)  # noqa: PTH120
    code = KILLED.format(tests=tests, at=at, run=run, folder=str(tmp_path / "killed"))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    if run == "offline":
        whole, resumed = offline(tmp_path / "whole")[0], offline(tmp_path / "killed", resume=True)[0]
    else:
        whole, resumed = online(tmp_path / "whole"), online(tmp_path / "killed", resume=True)
    assert torch.equal(weights(whole), weights(resumed)), f"killed at step {at}"


def test_a_signal_saves_and_stops_with_its_exit_code(tmp_path: Path) -> None:
    class Signalled(Likelihood):
        def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(batch)

    policy = TinyPolicy()
    optimizer = Signalled(TrainingOptions(minibatch_size=4, n_epochs=2), policy=policy)
    with pytest.raises(Interrupted, match="after step 1") as stopped:
        train(optimizer, OfflineFeed(demonstrations(), policy), folder=tmp_path, seed=0)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert checkpoints.newest_checkpoint(tmp_path / "checkpoints")[0] is not None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    class Exploding(Likelihood):
        def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
            loss, metrics = super().loss(batch)
            return (loss * float("nan") if len(seen) == 2 else loss), metrics

    seen: list[float] = []
    policy = TinyPolicy()
    optimizer = Exploding(TrainingOptions(minibatch_size=4, n_epochs=2, save_every=1), policy=policy)
    with pytest.raises(StoppedByCheck, match="step 3: loss and grad_norm not finite") as stopped:
        train(
            optimizer, OfflineFeed(demonstrations(), policy), folder=tmp_path, seed=0,
            on_step=lambda record: seen.append(record["step"]),
        )  # fmt: skip
    assert stopped.value.exit_code == 3
    assert torch.isfinite(weights(policy)).all()
    newest, _ = checkpoints.newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-00000002"


def test_data_of_which_nothing_is_left_are_an_error(tmp_path: Path) -> None:
    class Choosy(Likelihood):
        def prepare(self, batch: GroupBatch) -> GroupBatch:
            return batch.select([])

    policy = TinyPolicy()
    with pytest.raises(InputError, match="none of the 12 records has anything to learn"):
        train(Choosy(policy=policy), OfflineFeed(demonstrations(), policy), folder=tmp_path, seed=0)


def test_the_kl_limit_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(StoppedByCheck, match=r"^step 0: The mean KL .* is 7, above 6\.5 \(max_kl\): the policy is far"):
        online(tmp_path, max_kl=6.5)
    assert checkpoints.newest_checkpoint(tmp_path / "checkpoints")[0] is not None
    online(tmp_path / "equal", max_kl=7.0)


def test_running_out_of_memory_halves_the_budget_and_goes_on(tmp_path: Path) -> None:
    class Hungry(Likelihood):
        def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
            if batch.num_groups > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().loss(batch)

    notices: list[str] = []
    torch.manual_seed(0)
    policy = policy_in_float64()
    options = TrainingOptions(learning_rate=0.01, minibatch_size=4, n_epochs=3, max_tokens=512)
    train(
        Hungry(options, policy=policy), OfflineFeed(demonstrations(), policy), folder=tmp_path, seed=5,
        on_notice=notices.append,
    )  # fmt: skip
    assert notices[0] == "out of memory: continuing with max_tokens = 256"
    assert same_weights(weights(policy), weights(offline(tmp_path / "b")[0]), steps=9)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path: Path, damage: str) -> None:
    whole, _ = offline(tmp_path)
    newest, previous = checkpoints.checkpoint_folders(tmp_path / "checkpoints")
    target = newest / "adam.pt"
    content = bytearray(target.read_bytes())
    if damage == "truncate":
        target.write_bytes(content[:-10])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif damage == "remove":
        target.unlink()
    else:
        (newest / "manifest.json").unlink()
    chosen, problems = checkpoints.newest_checkpoint(tmp_path / "checkpoints")
    assert chosen == previous
    assert problems[0].startswith(newest.name)
    assert damage == "no manifest" or "adam.pt" in problems[0]
    assert torch.equal(weights(offline(tmp_path, resume=True)[0]), weights(whole))


def test_no_checkpoint_that_verifies_is_an_error(tmp_path: Path) -> None:
    offline(tmp_path, keep_checkpoints=1)
    (only,) = checkpoints.checkpoint_folders(tmp_path / "checkpoints")
    (only / "modules.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"modules\.pt: 0 bytes instead of"):
        offline(tmp_path, resume=True)


def test_other_data_are_refused_on_resume(tmp_path: Path) -> None:
    policy = TinyPolicy()
    feed = OfflineFeed(demonstrations(), policy)
    train(Likelihood(policy=policy), feed, folder=tmp_path, seed=0, fingerprint="a")
    with pytest.raises(CheckpointError, match="another recipe or other data"):
        train(Likelihood(policy=policy), feed, folder=tmp_path, seed=0, fingerprint="b", resume=True)
    forced = train(Likelihood(policy=policy), feed, folder=tmp_path, seed=0, fingerprint="b", resume=True, force=True)
    assert forced.metrics == {}, "the run had ended, so nothing was left to do"


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(tmp_path, n_epochs=1)
    before = checkpoints.checkpoint_folders(tmp_path / "checkpoints")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(AlignkitError, match=r"a checkpoint needs 4,000 bytes, .* are free"):
        checkpoints.save_checkpoint(
            tmp_path / "checkpoints", 99, tensors={"modules": torch.zeros(1000)}, state={}, keep=2
        )
    assert checkpoints.checkpoint_folders(tmp_path / "checkpoints") == before


def test_learning_rate_scales_and_decay_reach_the_right_parameters() -> None:
    class Scaled(Likelihood):
        def learning_rate_scales(self) -> dict[str, float]:
            return {"policy.value_head": 10.0}

    policy = TinyPolicy()
    policy.add_value_head()
    optimizer = Scaled(TrainingOptions(learning_rate=0.1, weight_decay=0.3), policy=policy)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(optimizer)
        for parameter in group["params"]
    }
    names = {f"{m}.{k}": p for m, module in policy.modules().items() for k, p in module.named_parameters()}
    assert len(found) == len({id(p) for p in names.values()})
    for name, parameter in names.items():
        lr = 1.0 if name.startswith("policy.value_head") else 0.1
        assert found[id(parameter)] == (pytest.approx(lr), 0.3 if parameter.ndim > 1 else 0.0), name


def test_abstentions_leave_the_batch_and_all_of_them_stop_it() -> None:
    policy = TinyPolicy()
    batch = policy.generate([Prompt(text="a"), Prompt(text="b")], n=2, sampling=Sampling(max_tokens=4), seed=0)

    class Abstaining(TinyReward):
        def score(self, groups: Any) -> list[list[float | None]]:
            return [[None, 1.0] if group.prompt.text == "a" else [2.0, 3.0] for group in groups]

    class Silent(TinyReward):
        def score(self, groups: Any) -> list[list[float | None]]:
            return [[None] * len(group.responses) for group in groups]

    scored = score_batch(batch, Abstaining())
    assert scored.rewards is not None and scored.rewards.tolist() == [1.0, 2.0, 3.0]
    assert scored.group_index.tolist() == [0, 1, 1]
    assert scored.groups[0].responses == batch.groups[0].responses[1:]
    with pytest.raises(AlignkitError, match="abstained on all 4 responses"):
        score_batch(batch, Silent())


@pytest.mark.parametrize("answer", [[[1.0, float("nan")]], [[1.0, "2"]], [[1.0]], []])
def test_a_reward_that_returns_nonsense_is_named(answer: Any) -> None:
    class Broken(TinyReward):
        def score(self, groups: Any) -> Any:
            return answer

    batch = TinyPolicy().generate([Prompt(text="a")], n=2, sampling=Sampling(max_tokens=4), seed=0)
    with pytest.raises(AlignkitError, match="reward Broken"):
        score_batch(batch, Broken())


def test_rollouts_refuse_a_truncated_distribution() -> None:
    policy, options = TinyPolicy(), ReinforceOptions()
    distortions: dict[str, Any] = {
        "temperature": 0.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2,
        "stop": ("x",),
    }  # fmt: skip
    for name, value in distortions.items():
        with pytest.raises(InputError, match=f"(?s)full distribution.*remove {name}$") as refused:
            RolloutFeed(
                [Prompt(text="a")], policy, TinyReward(), sampling=Sampling(**{name: value}), options=options, seed=0
            )
        assert refused.value.where == "sampling"
    RolloutFeed([Prompt(text="a")], policy, TinyReward(), sampling=Sampling(temperature=0.5), options=options, seed=0)


def test_checkpoint_state_is_json(tmp_path: Path) -> None:
    online(tmp_path)
    newest, _ = checkpoints.newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    assert state["position"] == {"step": 16, "batch": 4, "minibatch": 0}
    assert state["optimizer"]["baseline"] != 0.0
