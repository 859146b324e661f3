"""`alignkit.train` on a tiny Llama: what a run makes of the same, mistakes, signals, nothing left on disk."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.options import DPOOptions
from alignkit_grpo.members import GRPO
from alignkit_grpo.options import GRPOOptions
from alignkit_ppo.options import PPOOptions
from alignkit_ppo.ppo import PPO
from python_material import (
    DPO_OPTIONS,
    ONLINE,
    PAIRS,
    PROMPTS,
    SIGNALS,
    Letters,
    a_policy,
    dpo_tables,
    letters,
    online_tables,
    saved,
    weights,
    write_material,
)

import alignkit
from alignkit import Group, InputError, Interrupted, PluginError, Prompt, RewardSource, Sampling
from alignkit.interfaces import Feed, ForeignTrainer
from alignkit.options import AlarmOptions, TrainingOptions
from alignkit.outputs import TrainResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

UNRANKED = Group(Prompt(text="a"), ("b", "c"))
WEIGHTLESS = Group(Prompt(text="a"), ("b", "c"), ranks=(0, 1), meta={"weight": 0})
TIED = Group(Prompt(text="a"), ("b", "c"), ranks=(0, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("api"))


def test_a_second_ctrl_c_is_that_of_python_and_not_the_end_of_the_process(folder: Path) -> None:
    class Twice(Letters):
        def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().score(groups)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    before = [signal.getsignal(number) for number in SIGNALS]
    grpo = GRPO(GRPOOptions(**ONLINE), policy=a_policy(folder), reward=Twice())
    with pytest.raises(KeyboardInterrupt):
        alignkit.train(grpo, PROMPTS, sampling=Sampling(max_tokens=6), progress=False)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_offline_algorithm_by_hand_is_that_of_a_run(folder: Path, tmp_path: Path) -> None:
    options = {f"optimizer.{name}": value for name, value in DPO_OPTIONS.items()}
    dpo = alignkit.run(dpo_tables(folder), options=options, out=tmp_path / "run", progress=False)
    policy = a_policy(folder)
    result = alignkit.train(DPO(DPOOptions(**DPO_OPTIONS), policy=policy), PAIRS, seed=3, progress=False)
    assert result.steps == dpo.summary["align"]["steps"]
    assert saved(policy, tmp_path / "policy") == weights(dpo.path / "policy")


@pytest.mark.parametrize(("plugin", "made", "options"), [("grpo", GRPO, GRPOOptions), ("ppo", PPO, PPOOptions)])
def test_an_online_algorithm_by_hand_is_that_of_a_run(
    folder: Path, tmp_path: Path, plugin: str, made: Any, options: Any
) -> None:
    run = alignkit.run(online_tables(folder, plugin), reward=letters, out=tmp_path / "run", progress=False)
    assert run.reward().score(PAIRS) == Letters().score(PAIRS)
    policy = a_policy(folder)
    algorithm = made(options(**ONLINE), policy=policy, reward=Letters())
    out = tmp_path / "by-hand"
    result = alignkit.train(algorithm, iter(PROMPTS), sampling=Sampling(max_tokens=6), out=out, seed=3, progress=False)
    assert weights(out) == weights(run.path / "policy") == saved(policy, tmp_path / "again")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, result.steps + 1))
    assert [line["loss"] for line in steps] == [record["loss"] for record in run.metrics]
    assert [line["text"] for line in lines if "alarm" in line] == [alarm["text"] for alarm in run.alarms] != []


def test_training_by_hand_is_resumed_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    sampling = Sampling(max_tokens=6)

    def algorithm(reward: RewardSource[Any], **options: Any) -> GRPO:
        return GRPO(GRPOOptions(**{**ONLINE, **options}), policy=a_policy(folder), reward=reward)

    class Gone(Letters):
        calls = 0

        def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
            self.calls += 1
            if self.calls == 2:
                raise ConnectionError("the judge is gone")
            return super().score(groups)

    whole, part = tmp_path / "whole", tmp_path / "part"
    alignkit.train(algorithm(Letters()), PROMPTS, sampling=sampling, out=whole, progress=False)
    with pytest.raises(PluginError, match="judge is gone"):
        alignkit.train(algorithm(Gone()), PROMPTS, sampling=sampling, out=part, progress=False)
    with pytest.raises(InputError, match="this folder is not empty"):
        alignkit.train(algorithm(Letters()), PROMPTS, sampling=sampling, out=part, progress=False)
    for other in ({"kl_coef": 0.5}, {"learning_rate": 0.5}):
        with pytest.raises(alignkit.CheckpointError, match="another recipe or other data"):
            alignkit.train(
                algorithm(Letters(), **other), PROMPTS, sampling=sampling, out=part, resume=True, progress=False
            )
    more_often = algorithm(Letters(), save_every=1)
    alignkit.train(more_often, PROMPTS, sampling=sampling, out=part, resume=True, progress=False)
    assert weights(part) == weights(whole)


def test_without_out_nothing_stays_on_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    policy = a_policy(folder)
    start = torch.cat([p.detach().flatten() for p in policy.modules()["policy"].parameters()])
    seen: list[list[str]] = []

    class Looking(Letters):
        def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
            seen.append(sorted(path.name for path in tmp_path.rglob("*") if path.is_file()))
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().score(groups)

    grpo = GRPO(GRPOOptions(**ONLINE), policy=policy, reward=Looking())
    with pytest.raises(Interrupted, match="stopped by SIGINT; the weights are from the last step") as stopped:
        alignkit.train(grpo, PROMPTS, sampling=Sampling(max_tokens=6), progress=False)
    assert stopped.value.exit_code == 130
    assert seen == [[], ["metrics.jsonl", "trained_on.json"]]
    assert list(tmp_path.iterdir()) == []
    end = torch.cat([p.detach().flatten() for p in policy.modules()["policy"].parameters()])
    assert not torch.equal(start, end)


class Nudge(ForeignTrainer[TrainingOptions]):
    """A loop of its own, which adds to every weight."""

    consumes = Feed.RANKINGS

    def run(
        self,
        groups: Sequence[Group],
        *,
        sampling: Sampling,
        folder: Path,
        seed: int,
        on_step: Callable[[dict[str, float]], None],
    ) -> TrainResult:
        assert (list(groups), seed, folder.is_dir()) == (PAIRS, 7, True)
        for parameter in self.policy.modules()["policy"].parameters():
            parameter.data.add_(0.01)
        on_step({"step": 1, "loss": 0.5})
        return TrainResult(1, 0.5, 7, {"loss": 0.5})


def test_a_foreign_trainer_by_hand(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = alignkit.train(Nudge(policy=a_policy(folder)), PAIRS, seed=7, out=out, progress=False)
    assert (result.steps, result.metrics) == (1, {"loss": 0.5})
    assert weights(out) != weights(folder / "model")
    assert [
        line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ] == [0.5]


@dataclass(frozen=True, kw_only=True)
class LimitedOptions(DPOOptions, AlarmOptions):
    """A limit that nobody reports to."""


class Limited(DPO):
    """DPO with a limit."""

    Config = LimitedOptions


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Any]:
    policy = a_policy(folder)
    return {
        "dpo": DPO(policy=policy),
        "grpo": GRPO(policy=policy, reward=Letters()),
        "bare": GRPO(policy=policy),
        "limited": Limited(LimitedOptions(max_kl=1.0), policy=policy),
        "watched": Limited(LimitedOptions(alarm_cut_off=0.9), policy=policy),
        "nudge": Nudge(policy=policy),
    }


@pytest.mark.parametrize(
    ("algorithm", "data", "given", "where", "what"),
    [
        ("grpo", PAIRS, {}, "data", "number 0 is a Group, not a Prompt: GRPO learns from rollouts"),
        ("dpo", PROMPTS, {}, "data", "number 0 is a Prompt, not a Group: DPO learns from rankings"),
        ("dpo", [*PAIRS, {"prompt": "a"}], {}, "data", "number 12 is a dict, not a Group"),
        ("nudge", PROMPTS, {}, "data", "number 0 is a Prompt, not a Group: Nudge learns from rankings"),
        ("grpo", "prompts.jsonl", {}, "data", "str is not a list of Prompts"),
        ("grpo", ["say a"], {}, "data", "number 0 is a str, not a Prompt"),
        ("grpo", [], {}, "data", "no prompts"),
        ("dpo", [], {}, "data", "no groups"),
        ("dpo", None, {}, "data", "NoneType is not a list of Groups"),
        ("dpo", PAIRS, {"texts": PROMPTS}, "texts", "number 0 is a Prompt, not a Group"),
        ("dpo", PAIRS, {"texts": PAIRS}, "texts", "have no effect without ptx_coef"),
        ("dpo", PAIRS, {"sampling": Sampling()}, "sampling", "DPO samples nothing"),
        ("limited", PAIRS, {}, "optimizer.max_kl", "Limited reports no kl"),
        ("watched", PAIRS, {}, "optimizer.alarm_cut_off", "Limited reports no finished"),
        ("dpo", PAIRS, {"resume": True}, "resume", "needs out, the folder"),
        ("grpo", PROMPTS, {"sampling": Sampling(top_k=3)}, "sampling", "full distribution"),
        ("bare", PROMPTS, {}, "reward", "GRPO needs a reward to score rollouts"),
        (DPO, PAIRS, {}, "optimizer", "DPO is not an algorithm with a policy"),
        ("'dpo'", PAIRS, {}, "optimizer", "\"'dpo'\" is not an algorithm with a policy"),
        (
            "dpo",
            [*PAIRS, UNRANKED],
            {},
            "the training data",
            "1 of 13 records have no ranks; the first of them is number 13",
        ),
        ("dpo", [WEIGHTLESS, WEIGHTLESS], {}, "the training data", "all 2 records have weight 0"),
        ("dpo", [TIED], {}, "the training data", "none of the 1 records has anything to learn"),
    ],
)
def test_mistakes_in_training_by_hand(
    made: dict[str, Any], algorithm: Any, data: Any, given: dict[str, Any], where: str, what: str
) -> None:
    chosen = made.get(algorithm, algorithm) if isinstance(algorithm, str) else algorithm
    with pytest.raises(InputError) as raised:
        alignkit.train(chosen, data, progress=False, **given)
    assert raised.value.where == where
    assert what in raised.value.what
    assert raised.value.fix
