"""TRL's trainers from our recipes: the same steps as our own algorithms, and the same files afterwards."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf.options import HFOptions, LoraOptions
from alignkit_hf.policy import HFPolicy
from alignkit_trl.bridge import FixedRowOrder, RowOrder
from alignkit_trl.online import RewardFunction
from alignkit_trl.testing.parity import TOLERANCE

from alignkit import Group, Prompt, TrainResult, write_groups
from alignkit.checking import option_names
from alignkit.components import Context
from alignkit.errors import InputError, StoppedByCheck
from alignkit.interfaces import RewardSource
from alignkit.options import Config, Sampling
from alignkit.plugins import registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe
from alignkit.runs.reporting import Reporter
from alignkit.runs.run import run_recipe
from alignkit.testing import TinyPolicy, TinyReward, assert_near, terms_of_network
from alignkit.testing.tiny_hf import write_tiny_llama
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed, epoch_order

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLING = Sampling(max_tokens=5)
TRAINING: dict[str, Any] = {"learning_rate": 3e-3, "minibatch_size": 4, "warmup": 0.2, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


def groups_of(k: int, count: int = 10) -> list[Group]:
    draw = random.Random(k)

    def text(longest: int) -> str:
        return "".join(draw.choice("abcdefgh .") for _ in range(draw.randint(1, longest)))

    ranks = [tuple(draw.sample(range(k), k)) if k > 1 else None for _ in range(count)]
    return [Group(Prompt(text=text(12)), tuple(text(9) for _ in range(k)), ranks=own) for own in ranks]


def policy_of(folder: Path, lora: int = 0) -> HFPolicy:
    return HFPolicy(HFOptions(model=str(folder), lora=LoraOptions(r=lora)), Context(device="cpu"))


def equal_to(theirs: Any) -> Any:
    """What is promised, relative to numbers beyond 1."""
    largest = max(map(abs, theirs)) if isinstance(theirs, list) else abs(theirs)
    return pytest.approx(theirs, rel=0, abs=TOLERANCE * max(1.0, largest))


def build(name: str, policy: Any, reward: RewardSource[Any] | None = None, **options: Any) -> Any:
    found = registry().get("optimizer", name)
    target: Any = found.load()
    return target(found.config(**options), Context(device="cpu"), policy=policy, reward=reward)


def run(optimizer: Any, groups: Sequence[Group], tmp_path: Path) -> tuple[Any, list[dict[str, float]]]:
    steps: list[dict[str, float]] = []
    result = optimizer.run(groups, sampling=SAMPLING, folder=tmp_path, seed=3, on_step=steps.append)
    return result, steps


OTHERS: dict[str, Any] = {
    "learning_rate": 0.5, "lr_schedule": "linear", "warmup": 0.9, "weight_decay": 0.3, "adam_beta2": 0.5,
    "max_grad_norm": 0.3, "n_epochs": 3, "minibatch_size": 2, "iterations": 7, "batch_size": 8, "group_size": 3,
    "beta": 0.7, "label_smoothing": 0.2, "desirable_weight": 0.5, "undesirable_weight": 0.5, "center_coef": 0.1,
    "kl_coef": 0.7, "clip_range": 0.7, "loss_type": "dapo", "args": {"adam_epsilon": 1e-3},
}  # fmt: skip
NOT_TRLS = {"max_abstained"}
"""What the reward function that TRL calls checks itself."""


@pytest.mark.parametrize(
    ("name", "k"),
    [("trl-sft", 1), ("trl-dpo", 2), ("trl-kto", 2), ("trl-reward", 2), ("trl-grpo", 1), ("trl-rloo", 1)],
)
def test_every_option_reaches_trl(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, k: int
) -> None:
    told: list[dict[str, Any]] = []

    def run_trainer(_: str, __: Any, arguments: dict[str, Any], **___: Any) -> TrainResult:
        told.append(arguments)
        return TrainResult(0, 0.0, 0, {})

    for module in ("offline", "online"):
        monkeypatch.setattr(f"alignkit_trl.{module}.run_trainer", run_trainer)
    policy = policy_of(folder)
    # TRL wants minibatches of one size
    usual = {"minibatch_size": 4, **({"batch_size": 4} if k == 1 and name != "trl-sft" else {})}
    options = [option for option in option_names(registry().get("optimizer", name).config) if option not in NOT_TRLS]
    for changed in ({}, *({option: OTHERS[option]} for option in options)):
        run(build(name, policy, TinyReward(), **{**usual, **changed}), groups_of(k), tmp_path)
    start, *others = told
    assert len(others) == len(options)
    assert [option for option, arguments in zip(options, others, strict=True) if arguments == start] == []


@pytest.mark.parametrize(
    ("ours", "theirs", "k", "options"),
    [
        ("sft", "trl-sft", 1, {}),
        ("dpo", "trl-dpo", 2, {"beta": 0.3}),
        ("dpo", "trl-dpo", 3, {"beta": 0.3, "max_grad_norm": 0.5}),
        ("bradley-terry", "trl-reward", 2, {}),
        ("bradley-terry", "trl-reward", 3, {"center_coef": 0.1}),
    ],
)
def test_the_same_steps_as_ours(
    folder: Path, tmp_path: Path, ours: str, theirs: str, k: int, options: dict[str, Any]
) -> None:
    # 10 groups in steps of 4, twice: the last step of an epoch is short, and the second epoch has another order
    groups, options = groups_of(k), {**TRAINING, "n_epochs": 2, **options}
    mine = build(ours, policy_of(folder), **options)
    own: list[dict[str, float]] = []
    train(mine, OfflineFeed(groups, mine.policy), folder=tmp_path / "ours", seed=3, on_step=own.append)
    result, steps = run(build(theirs, policy_of(folder), **options), groups, tmp_path / "trl")
    assert result.steps == len(steps) == len(own) == 6
    assert result.tokens == 2 * mine.policy.encode(groups).num_tokens
    for name in ("loss", "grad_norm", "learning_rate", "step"):
        assert [step[name] for step in own] == equal_to([step[name] for step in steps]), name
    assert abs(own[0]["loss"] - own[-1]["loss"]) > 1e-3


def test_the_same_steps_as_our_kto(folder: Path, tmp_path: Path) -> None:
    # One epoch: in later ones TRL's baseline keeps the first one's mismatched pairs, ours goes with the order. And
    # prompts of one length: ours cuts a response that would make its new prompt the longest of the step.
    groups = [
        Group(Prompt(text=f"ask {number:02}"), group.responses, labels=(number % 3 > 0,))
        for number, group in enumerate(groups_of(1, count=24))
    ]
    options = {**TRAINING, "beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    mine = build("kto", policy_of(folder), **options)
    own: list[dict[str, float]] = []
    train(mine, OfflineFeed(groups, mine.policy), folder=tmp_path / "ours", seed=3, on_step=own.append)
    _, steps = run(build("trl-kto", policy_of(folder), **options), groups, tmp_path / "trl")
    assert len(steps) == len(own) == 6
    assert max(record["baseline"] for record in own) > 1e-3
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [step[name] for step in own] == equal_to([step[name] for step in steps]), name


def test_passes_of_any_size_make_the_same_step(folder: Path, tmp_path: Path) -> None:
    whole = run(build("trl-dpo", policy_of(folder), **TRAINING), groups_of(2), tmp_path)[1]
    parts = build("trl-dpo", policy_of(folder), **TRAINING, args={"per_device_train_batch_size": 2})
    for a, b in zip(whole[:2], run(parts, groups_of(2), tmp_path)[1][:2], strict=True):
        assert a["loss"] == equal_to(b["loss"])
    uneven = build("trl-dpo", policy_of(folder), **TRAINING, args={"per_device_train_batch_size": 3})
    with pytest.raises(InputError, match="per_device_train_batch_size"):
        run(uneven, groups_of(2), tmp_path)


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("name", ["trl-sft", "trl-dpo", "trl-kto", "trl-grpo", "trl-rloo"])
def test_the_policy_moves_and_stays_a_policy(folder: Path, tmp_path: Path, name: str, lora: int) -> None:
    policy, online = policy_of(folder, lora), name in ("trl-grpo", "trl-rloo")
    before = {key: tensor.clone() for key, tensor in policy.raw.state_dict().items()}
    pad, stops = policy.raw.lm.config.pad_token_id, policy.raw.lm.generation_config.eos_token_id
    options = {"batch_size": 4, "minibatch_size": 2, "group_size": 4, "iterations": 2} if online else {"n_epochs": 2}
    reward = TinyReward() if online else None
    optimizer = build(name, policy, reward, learning_rate=1e-3, **options)
    result, steps = run(optimizer, groups_of(1 if name == "trl-sft" else 2), tmp_path)
    assert [step["step"] for step in steps] == list(range(1, result.steps + 1))
    assert result.steps == (4 if online else 2)
    after = policy.raw.state_dict()
    assert after.keys() == before.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all("lora" in key for key in moved) == bool(lora)
    for owner in (policy.raw.model, policy.raw.lm):
        assert "forward" not in vars(owner)
    assert (policy.raw.lm.config.pad_token_id, policy.raw.lm.generation_config.eos_token_id) == (pad, stops)
    assert not (tmp_path / "trl").exists()
    optimizer.save(tmp_path / "saved")
    again, batch = policy_of(tmp_path / "saved"), policy.encode(groups_of(2))
    terms = terms_of_network(policy.modules(), tokens=batch.num_tokens)
    assert_near(again.forward(batch).logprobs, policy.forward(batch).logprobs, terms=terms)


def test_the_reference_is_the_policy_as_it_is_and_not_as_it_was_loaded(folder: Path, tmp_path: Path) -> None:
    policy = policy_of(folder)
    with torch.no_grad():
        for parameter in policy.raw.lm.parameters():
            parameter.mul_(1.1)
    steps = run(build("trl-dpo", policy, **TRAINING), groups_of(2), tmp_path)[1]
    assert steps[0]["loss"] == equal_to(math.log(2))


def test_labels_of_kto(folder: Path) -> None:
    optimizer, tokens = build("trl-kto", policy_of(folder)), [[5], [6, 7], [8]]
    ranked = Group(Prompt(text="a"), ("x", "y", "z"), ranks=(1, 0, 0))
    assert [row["label"] for row in optimizer.rows(ranked, [1], tokens)] == [False, True, True]
    labelled = replace(ranked, ranks=None, labels=(True, False, True))
    rows = optimizer.rows(labelled, [1], tokens)
    assert rows[1] == {"prompt_ids": [1], "completion_ids": [6, 7], "label": False}
    assert [row["label"] for row in rows] == [True, False, True]
    assert optimizer.rows(replace(ranked, ranks=(0, 0, 0)), [1], tokens) == []
    order = optimizer.order([rows], 2, seed=0)
    assert [row["KL_completion_ids"] for row in rows] == [[6, 7], [5], [8]]
    assert list(order) == [0, 1, 2]


def test_rows_come_in_the_order_of_the_engine() -> None:
    order = RowOrder([1, 3, 2], seed=5)
    rows = {0: [0], 1: [1, 2, 3], 2: [4, 5]}
    fixed = FixedRowOrder([1, 3, 2], seed=5)
    for epoch in (0, 1, 2):
        for sampler, taken in ((order, epoch), (fixed, 0)):
            sampler.set_epoch(epoch)
            expected = epoch_order(3, seed=5, batch=0, epoch=taken)
            assert list(sampler) == [row for group in expected for row in rows[group]]
            assert len(sampler) == 6


class Lengths(RewardSource[Config]):
    """Scores the length; abstains on empty responses. Remembers how many groups it was given."""

    seen: list[list[tuple[str, int]]]

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        self.seen.append([(group.prompt.plain, len(group.responses)) for group in groups])
        return [[float(len(text)) if text else None for text in group.responses] for group in groups]


def test_any_reward_source_scores_what_trl_samples() -> None:
    source = Lengths()
    source.seen = []
    function = RewardFunction(source, [Prompt(text="p"), Prompt(text="q", meta={"answer": 4})])
    scores = function(
        prompts=["P", "P", "Q", "Q"], completions=["a", "", "abc", "ab"], completion_ids=[[1], [], [1, 2], [3]],
        prompt_index=[0, 0, 1, 1], trainer_state=None,
    )  # fmt: skip
    assert scores == [1.0, None, 3.0, 2.0]
    assert source.seen == [[("p", 2), ("q", 2)]]
    assert function.tokens == 4
    strict = RewardFunction(source, [Prompt(text="p")], max_abstained=0.2)
    with pytest.raises(StoppedByCheck, match="abstained on 50% of the responses"):
        strict(completions=["a", ""], completion_ids=[[1], []], prompt_index=[0, 0])


def test_what_can_not_be_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="policy hf"):
        build("trl-dpo", TinyPolicy())
    with pytest.raises(InputError, match="reward"):
        build("trl-grpo", policy_of(folder))
    tied = [replace(group, ranks=(0, 0)) for group in groups_of(2)]
    with pytest.raises(InputError, match="nothing to learn from"):
        run(build("trl-dpo", policy_of(folder)), tied, tmp_path)
    with pytest.raises(InputError, match="TRL refuses it: Label smoothing must be greater than 0"):
        run(build("trl-dpo", policy_of(folder), args={"loss_type": ["exo_pair"]}), groups_of(2), tmp_path)
    assert not hasattr(build("trl-dpo", policy_of(folder)), "loss")


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    policy = policy_of(folder)
    next(policy.raw.lm.parameters()).data.fill_(float("nan"))
    with pytest.raises(StoppedByCheck, match="not finite"):
        run(build("trl-sft", policy), groups_of(1), tmp_path)


RECIPE = """
[run]
holdout = 0.2
device = "cpu"
[policy]
model = "{model}"
[demonstrations]
path = "{data}/demonstrations.jsonl"
[preferences]
path = "{data}/preferences.jsonl"
[reward]
train.learning_rate = 1e-3
train.minibatch_size = 4
[optimizer]
plugin = "dpo"
learning_rate = 1e-3
minibatch_size = 4
beta = 0.3
[sampling]
max_tokens = 5
"""


def run_in(folder: Path, tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    write_groups(tmp_path / "data" / "demonstrations.jsonl", groups_of(1))
    write_groups(tmp_path / "data" / "preferences.jsonl", groups_of(2, count=20))
    path, out = tmp_path / "recipe.toml", tmp_path / f"out{len(overrides)}"
    path.write_text(RECIPE.format(model=folder, data=tmp_path / "data"))
    resolved = resolve(load_recipe(path, flags={}, overrides=overrides), registry())
    summary = run_recipe(resolved, out, reporter=Reporter())
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert (out / "policy" / "model.safetensors").exists()
    return summary, [record for line in lines if "loss" in (record := json.loads(line))]


def test_one_flag_runs_trls_trainer_in_the_pipeline(folder: Path, tmp_path: Path) -> None:
    ours, own = run_in(folder, tmp_path, "optimizer.plugin=dpo")
    theirs, steps = run_in(folder, tmp_path, "optimizer.plugin=trl-dpo", "run.threads=1")
    assert ours.keys() == theirs.keys()
    assert {"sft", "preferences", "reward", "align", "eval"} <= theirs.keys()
    first, second = ([step for step in lines if step["stage"] == "policy"] for lines in (own, steps))
    assert len(first) == len(second) > 2
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == equal_to(b["loss"])
        assert a["margin"] == equal_to(b["margin"])


def test_sft_reward_model_and_policy_all_by_trl(folder: Path, tmp_path: Path) -> None:
    overrides = ["sft.plugin=trl-sft", "reward.train.plugin=trl-reward", "optimizer.plugin=trl-grpo"]
    sizes = ["optimizer.batch_size=4", "optimizer.group_size=2", "optimizer.iterations=2"]
    summary, steps = run_in(folder, tmp_path, *overrides, *sizes)
    stages = {step["stage"] for step in steps}
    assert stages == {"sft", "reward", "policy"}
    assert 0 <= summary["reward"]["accuracy"]["value"] <= 1
    assert summary["align"]["steps"] == 2
    assert "policy" in summary["eval"]
