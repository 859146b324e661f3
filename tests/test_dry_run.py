"""`--dry-run`: what it adds up, by hand; and what algorithms say that they hold is what they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from alignkit import Config, Footprint, Group, Held, InputError, Load
from alignkit.cli.app import build_app
from alignkit.interfaces import Feed, Optimizer, RewardSource, Scorer
from alignkit.plugins import Registration, registry
from alignkit.recipe.reading import checked
from alignkit.recipe.recipe import recipe_of
from alignkit.runs.dry import dry_run, size_text, told
from alignkit.testing import TinyOptions, TinyPolicy
from alignkit.versions import FIRST_PARTY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ASKED: list[tuple[Held, Load]] = []


class Weighed(TinyPolicy):
    """Its models have round sizes: weights 100 bytes, gradients 10, AdamW 20, activations a byte a token."""

    @classmethod
    def footprint(cls, config: TinyOptions | None, held: Held, load: Load) -> Footprint:
        ASKED.append((held, load))
        one = Footprint(parameters=25, weights=100, largest=8)
        if held.trained:
            one = replace(one, trained=5, gradients=10, adam=20, activations=load.max_tokens)
        return replace(one, cache=3 * load.rows) if held.name == "policy" else one


class Plain(RewardSource[Config]):
    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[float(len(text)) for text in group.responses] for group in groups]

    def start_critic(self) -> Scorer:
        return TinyPolicy().scorer()


@pytest.fixture(autouse=True)
def _weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    ASKED.clear()
    more = [
        Registration("policy", "weighed", Weighed, TinyOptions, "alignkit-test"),
        Registration("reward", "plain", Plain, Config, "alignkit-test"),
    ]
    monkeypatch.setattr(registry(), "registrations", [*registry().registrations, *more])


def recipe(tmp_path: Path, **tables: Any) -> dict[str, Any]:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    return {
        "policy": {"plugin": "weighed"},
        "prompts": {"path": str(data)},
        "reward": {"plugin": "plain"},
        "sampling": {"max_tokens": 32},
        "run": {"device": "cpu"},
        **tables,
    }


def result(tables: dict[str, Any], **more: Any) -> dict[str, Any]:
    return dry_run(checked(recipe_of(tables, flags={}, options={})), **more)


PPO = {"plugin": "ppo", "max_tokens": 64, "critic": "policy", "group_size": 4, "batch_size": 8}


def test_the_peak_is_what_is_kept_and_the_larger_of_training_and_sampling(tmp_path: Path) -> None:
    found = result(recipe(tmp_path, optimizer=PPO))
    assert list(found["plan"]) == ["align", "eval"]
    stage = found["memory"]["align"]
    assert list(stage["models"]) == ["policy", "critic", "reference"]
    assert stage["unknown"] == ["reward"]
    # Three models of 100, two of them trained. 32 responses are sampled, 3 bytes each, after all is released.
    kept = 3 * 100 + 2 * 20
    assert stage["peak"] == kept + max(2 * 10 + 2 * 64, 3 * 32) == 488
    assert stage["peak_per_process"]["ddp"] == dict.fromkeys(("2", "4", "8", "16"), 488 + 20), "gradients twice"
    # Half of all is 170 + 10; gathered are two parts of each trained model; to sample, the whole policy.
    assert stage["peak_per_process"]["fsdp2"]["2"] == 170 + max(10 + 128 + 2 * 16, 96 + 100) == 170 + 196
    assert stage["peak_per_process"]["fsdp2"]["16"] == 340 // 16 + 196
    assert stage["assumed"] == vars(Load(device="cpu", max_tokens=64, prompt=32, response=32, responses=4, rows=32))
    large = result(recipe(tmp_path, optimizer={**PPO, "max_tokens": 1000}))["memory"]["align"]
    assert large["peak"] == kept + 20 + 2000
    small = result(recipe(tmp_path, optimizer={**PPO, "max_tokens": 32}))["memory"]["align"]
    # At the start DDP sends the weights of both trained models, beside those of all three.
    assert small["peak_per_process"]["ddp"]["8"] == 3 * 100 + 2 * 100 > kept + 20 + 2 * 32 + 20
    assert large["peak_per_process"]["fsdp2"]["4"] == 340 // 4 + 20 // 4 + 2000 + 32


def test_another_sampler_keeps_keys_and_values_elsewhere(tmp_path: Path) -> None:
    vllm = {"plugin": "vllm", "urls": ["http://127.0.0.1:9"]}
    stage = result(recipe(tmp_path, optimizer=PPO, sampler=vllm))["memory"]["align"]
    assert stage["assumed"]["rows"] == stage["models"]["policy"]["cache"] == 0
    # Half of all weights and AdamW's state, half of the gradients, activations, two parts of two trained models.
    assert stage["peak_per_process"]["fsdp2"]["2"] == 170 + 10 + 128 + 2 * 16


def test_only_the_stages_that_train_are_weighed(tmp_path: Path) -> None:
    data = recipe(tmp_path)["prompts"]
    tables = {**recipe(tmp_path), "demonstrations": data, "preferences": data, "reward": {"plugin": "model"},
              "optimizer": {**PPO, "critic": "shared"}}  # fmt: skip
    tables.pop("prompts")
    found = result(tables)
    assert list(found["plan"]) == ["sft", "preferences", "reward", "align", "eval"]
    assert {stage: list(one["models"]) for stage, one in found["memory"].items()} == {
        "sft": ["policy"],
        "reward": ["policy", "reward"],
        "align": ["policy", "reference", "reward"],
    }
    held = {(one.name, one.trained, one.scores, one.value_layers) for one, _ in ASKED}
    assert held == {
        ("policy", True, False, None), ("policy", False, False, None), ("reward", True, True, None),
        ("policy", True, False, 0), ("reference", False, False, None), ("reward", False, True, None),
    }  # fmt: skip
    assert {one.responses for _, one in ASKED} == {1, 2, 4}
    assert list(result(tables, stages=["reward"])["memory"]) == ["reward"]
    assert result(tables, stages=["sft"], device="cuda")["memory"]["sft"]["assumed"]["max_tokens"] == 32768


def test_an_automatic_budget_is_halved_until_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.runs.dry.free_bytes", lambda device: 10_000)
    tables = recipe(tmp_path, optimizer={**PPO, "max_tokens": "auto"})
    assert result(tables)["memory"]["align"]["assumed"]["max_tokens"] == 2048, "2 x 4096 tokens don't fit 8000 bytes"
    monkeypatch.setattr("alignkit.runs.dry.free_bytes", lambda device: 10)
    assert result(tables)["memory"]["align"]["assumed"]["max_tokens"] == 512
    assert result(tables, device="cuda")["memory"]["align"]["assumed"]["max_tokens"] == 32768, "of another machine"


def test_the_command_shows_it_and_starts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    lines = [f'[policy]\nplugin = "weighed"\n[prompts]\npath = {json.dumps(recipe(tmp_path)["prompts"]["path"])}']
    file.write_text("\n".join([*lines, '[reward]\nplugin = "plain"\n[optimizer]\nplugin = "ppo"\nmax_tokens = 64']))
    app, out = build_app([]), tmp_path / "out"
    for command in ("run", "align"):
        words = [command, str(file), "--dry-run", "--out", str(out), "-o", "run.device=cpu"]
        said = CliRunner().invoke(app, words, catch_exceptions=False).stdout
        assert "align on cpu" in said
        assert "0.0M parameters, 0.0M trained: weights 0.0 MiB" in said
        assert "not known, counts as nothing" in said
        found = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
        assert found["memory"]["align"]["models"]["policy"]["weights"] == 100
        counted = CliRunner().invoke(
            app, [*words, "--json", "--processes", "3", "--nodes", "2"], catch_exceptions=False
        )
        assert list(json.loads(counted.stdout)["memory"]["align"]["peak_per_process"]["ddp"]) == ["6"]
    assert not out.exists()


def test_a_device_without_an_estimate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--on tpu: has no estimate\n  fix: choose one of: cpu, cuda"):
        result(recipe(tmp_path), device="tpu")


def test_sizes_are_read_by_people() -> None:
    assert [size_text(size) for size in (0, 2**20, 2**28 - 1, 2**28, 3 * 2**30)] == [
        "0.0 MiB", "1.0 MiB", "256.0 MiB", "0.25 GiB", "3.00 GiB",
    ]  # fmt: skip
    assert told({"plan": {"align": "x"}, "memory": {}}) == {"plan": {"align": "x"}}


OPTIMIZERS = [
    registration
    for registration in registry().registrations
    if registration.role == "optimizer" and registration.distribution in {*FIRST_PARTY} - {"alignkit-trl"}
]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ppo": [{"critic": "policy"}, {"critic": "reward"}, {"kl_coef": 0.0}],
    "trpo": [{"critic": "reward"}],
    "grpo": [{"kl_coef": 0.0}, {"kl_coef": 0.0, "track_kl": True}, {"kl_coef": 0.0, "max_kl": 1.0}],
    "slic": [{"normalized": False}],
}


@pytest.mark.parametrize(
    ("registration", "options"),
    [(one, options) for one in OPTIMIZERS for options in ({}, *VARIANTS.get(one.name, []))],
    ids=str,
)
def test_an_algorithm_holds_what_it_says(registration: Registration, options: dict[str, Any]) -> None:
    component: Any = registration.load()
    config = registration.config(**options)
    held = {one.name: one for one in component.holds(config)}
    reward = Plain() if component.consumes is Feed.ROLLOUTS else None
    made: Optimizer[Any] = component(config, policy=TinyPolicy(), reward=reward)
    assert ("reference" in held) == (made.reference is not None)
    trained = {name for name, one in held.items() if one.trained}
    modules = {name.partition(".")[0] for name in made.modules()}
    assert {"scorer" if name == "reward" else name for name in trained} == modules
    has_head = any("value_head" in name for module in made.modules().values() for name, _ in module.named_parameters())
    assert (held["policy"].value_layers == 0) == has_head
    if "critic" in held:
        assert held["critic"] == Held(name="critic", trained=True, scores=True, of_reward=config.critic == "reward")
