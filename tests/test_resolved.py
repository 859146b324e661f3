"""A resolved recipe: what it builds, what it tells of itself, and what it keeps to itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from alignkit.errors import InputError, PluginError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Refusal, Resolve

pytestmark = pytest.mark.usefixtures("fake_plugin")


def test_components_inside_options_are_checked_and_built(resolve: Resolve, refusal: Refusal) -> None:
    good = '{plugin = "given", value = 1}'
    resolved = resolve(None, [f"reward.sources=[{good}]"], {"reward": "blend"})
    assert [source.config.value for source in resolved.build("reward").sources] == [1.0]
    error = refusal(None, [f'reward.sources=[{good}, {{plugin = "given"}}]'], {"reward": "blend"})
    assert str(error) == "-o reward.sources.1.value: is required"
    error = refusal(None, ['reward.sources=[{plugin = "gievn"}]'], {"reward": "blend"})
    assert str(error).startswith("-o reward.sources.0.plugin: no reward plugin 'gievn'\n  fix: did you mean 'given'?")
    assert refusal(None, ["reward.sources=[{value = 1}]"], {"reward": "blend"}).what == "needs a reward plugin"
    error = refusal(None, ['run.metrics=[{plugin="nobody"}]'])
    assert str(error).startswith("-o run.metrics.0.plugin: no metrics plugin 'nobody'")


def test_the_training_of_a_reward_is_checked_and_built(resolve: Resolve, refusal: Refusal) -> None:
    resolved = resolve(None, ["reward.train.beta=0.4"], {"reward": "trained"})
    assert "reward.train" in resolved
    assert resolved.config("reward.train").beta == 0.4
    assert resolved.load("reward.train").__name__ == "Algorithm"
    error = refusal(None, ["reward.train.beta=-1"], {"reward": "trained"})
    assert str(error) == "-o reward.train.beta: must be at least 0, found -1"
    given = resolve(None, ["reward.model=folder"], {"reward": "trained"})
    assert "reward.train" not in given
    with pytest.raises(InputError, match="this needs a reward"):
        given.part("reward.train.x")


def test_a_table_that_is_needed_and_not_there(resolve: Resolve) -> None:
    with pytest.raises(InputError, match="this needs a policy") as raised:
        resolve(None).build("policy")
    assert raised.value.fix == "add a table [policy], or an option of it: -o policy.OPTION=VALUE"


def test_a_component_that_fails_to_start_names_its_plugin(resolve: Resolve) -> None:
    with pytest.raises(
        PluginError, match="reward plugin fake-plugin:faulty could not be started: RuntimeError: out of"
    ):
        resolve(None, flags={"reward": "faulty"}).build("reward")
    with pytest.raises(InputError, match="reward given value: is required"):
        resolve(None).build_spec("reward", {"plugin": "given"})
    with pytest.raises(InputError) as raised:
        resolve(None).build_spec("reward", {"plugin": "given", "valeu": 1})
    assert str(raised.value).splitlines() == [
        "2 things are wrong:",
        "reward given valeu: no such option",
        "  fix: did you mean 'value'?",
        "reward given value: is required",
    ]


def test_the_context_tells_seed_device_and_folder(tmp_path: Path, resolve: Resolve) -> None:
    resolved = resolve(None, ["run.seed=7", "run.device=cpu", "reward.value=2"], {"reward": "given"})
    reward = resolved.build("reward", folder=tmp_path)
    assert (reward.context.seed, reward.context.device, reward.context.folder) == (7, "cpu", tmp_path)
    assert resolved.context().build("reward", {"plugin": "given", "value": 3}).config.value == 3


def test_the_resolved_recipe_says_all_and_reads_back(recipe_file: Path, tmp_path: Path, resolve: Resolve) -> None:
    overrides = ['reward.sources=[{plugin = "given", value = 1}]', "eval.rewards.gold={plugin='given', value=2}"]
    first = resolve(recipe_file, overrides, {"optimizer": "pull", "reward": "blend"})
    (tmp_path / "again.toml").write_text(first.to_toml())
    assert tomllib.loads(first.to_toml())["optimizer"]["n_epochs"] == 1
    again = resolve(tmp_path / "again.toml")
    assert again.to_toml() == first.to_toml()
    assert again.digest == first.digest
    assert again.config("optimizer") == first.config("optimizer")


def test_the_digest_changes_with_what_influences_the_result(resolve: Resolve) -> None:
    flags = {"optimizer": "pull", "reward": "trained"}
    digest = resolve(None, [], flags).digest
    for noise in (
        "run.device=cpu",
        "run.threads=2",
        "optimizer.save_every=5",
        "optimizer.max_tokens=9",
        "eval.count=3",
    ):
        assert resolve(None, [noise], flags).digest == digest, noise
    for signal in (
        "run.seed=1",
        "optimizer.beta=0.2",
        "reward.model=x",
        "sampling.max_tokens=9",
        "reward.train.beta=1",
    ):
        assert resolve(None, [signal], flags).digest != digest, signal
    assert resolve(None, [], {"optimizer": "push", "reward": "trained"}).digest != digest


def test_a_refusal_imports_no_torch(fake_plugin: Path, recipe_file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from alignkit.plugins import registry\n"
        "from alignkit.recipe.recipe import load_recipe; from alignkit.recipe.reading import resolve\n"
        "from alignkit.errors import InputError\n"
        "try: resolve(load_recipe(Path('recipe.toml'), flags={}, overrides=['optimizer.kl_coef=-1']), registry())\n"
        "except InputError: sys.exit('torch' in sys.modules)\n"
        "sys.exit('nothing was refused')"
    )
    environment = {"PYTHONPATH": str(fake_plugin)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
