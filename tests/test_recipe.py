"""Recipes: precedence, alternatives, one line for each thing that is wrong, with the place where it was said."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from alignkit.recipe.recipe import Recipe, load_recipe
from alignkit.recipe.tables import merged

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Refusal, Resolve

pytestmark = pytest.mark.usefixtures("fake_plugin")


def test_precedence_default_recipe_flag_override(recipe_file: Path, resolve: Resolve) -> None:
    assert resolve(None, flags={"optimizer": "push"}).config("optimizer").kl_coef == 0.05
    assert resolve(recipe_file).config("optimizer").kl_coef == 0.2
    assert resolve(recipe_file, ["optimizer.kl_coef=0.4"]).config("optimizer").kl_coef == 0.4
    assert resolve(recipe_file, ["optimizer.kl_coef=0.4", "optimizer.kl_coef=0.5"]).config("optimizer").kl_coef == 0.5
    assert resolve(recipe_file).names == {"optimizer": "push"}
    assert resolve(recipe_file, flags={"optimizer": "pull"}).names == {"optimizer": "pull"}
    assert resolve(recipe_file, ["optimizer.plugin=push"], {"optimizer": "pull"}).names == {"optimizer": "push"}


def test_tables_without_a_plugin(recipe_file: Path, resolve: Resolve) -> None:
    resolved = resolve(recipe_file, ["sampling.temperature=0.7", "run.device=cpu"])
    assert (resolved.run.seed, resolved.run.device, resolved.sampling.temperature) == (3, "cpu", 0.7)
    assert resolved.sampling.max_tokens == 128
    assert resolved.eval.against == "sft"
    assert resolved.config("run") is resolved.run


def test_sub_tables_are_joined_key_by_key(recipe_file: Path, resolve: Resolve) -> None:
    limits = resolve(recipe_file, ["optimizer.limits.high=5"]).config("optimizer").limits
    assert (limits.low, limits.high) == (2, 5)
    assert merged({"a": {"plugin": "x", "n": 1}}, {"a": {"plugin": "y"}}) == {"a": {"plugin": "y"}}
    assert merged({"a": {"x": 1}}, {"a": {}}) == {"a": {}}, "-o eval.rewards={} leaves no reward"
    assert merged({"a": {"x": 1}}, {}) == {"a": {"x": 1}}


def test_one_recipe_serves_another_plugin_by_flag(recipe_file: Path, resolve: Resolve) -> None:
    resolved = resolve(recipe_file, flags={"optimizer": "pull"})
    assert (resolved.config("optimizer").learning_rate, resolved.config("optimizer").beta) == (0.0001, 0.3)
    assert resolved.notices == ("[optimizer] in recipe.toml is written for push; pull has no kl_coef, limits: ignored",)
    assert resolve(recipe_file).notices == ()
    overridden = resolve(
        recipe_file, ["optimizer.beta=0.7", "optimizer.for.pull.learning_rate=1"], {"optimizer": "pull"}
    )
    assert (overridden.config("optimizer").beta, overridden.config("optimizer").learning_rate) == (0.7, 1.0)


def test_what_a_flag_may_drop_an_override_may_not(recipe_file: Path, refusal: Refusal) -> None:
    error = refusal(recipe_file, ["optimizer.kl_coef=1"], {"optimizer": "pull"})
    assert str(error).startswith("-o optimizer.kl_coef: no such option")


def test_settings_for_a_plugin_that_is_not_there_are_pointed_out(recipe_file: Path, resolve: Resolve) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("for.pull", "for.pul"))
    (notice,) = resolve(recipe_file).notices
    assert notice.startswith("recipe.toml:10 [optimizer] for.pul: no such plugin is installed; did you mean 'pull'?")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("kl_coef = -0.1", "recipe.toml:7 [optimizer] kl_coef: must be at least 0, found -0.1"),
        ("kl_coef = nan", "recipe.toml:7 [optimizer] kl_coef: must be a finite number, found nan"),
        ('kl_coef = "x"', "recipe.toml:7 [optimizer] kl_coef: must be a valid number, unable to parse string as a"),
        ("kl_koef = 0.1", "recipe.toml:7 [optimizer] kl_koef: no such option\n  fix: did you mean 'kl_coef'?"),
        ("mode = 'mild'", "recipe.toml:7 [optimizer] mode: must be 'soft' or 'hard', found 'mild'"),
        ("limits.hihg = 3", "recipe.toml:7 [optimizer] limits.hihg: no such option\n  fix: did you mean 'high'?"),
        ("limits.high = 0", "recipe.toml:7 [optimizer] limits.high: must be at least 1, found 0"),
        ("n_epochs = 1.5", "recipe.toml:7 [optimizer] n_epochs: must be a valid integer"),
    ],
)
def test_a_wrong_option_in_the_file_is_refused_with_its_line(
    recipe_file: Path, line: str, message: str, refusal: Refusal
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("kl_coef = 0.2", line))
    assert str(refusal(recipe_file)).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.kl_coef=-1", "-o optimizer.kl_coef: must be at least 0, found -1"),
        ("optimizer.limits.low=0", "-o optimizer.limits.low: must be at least 1, found 0"),
        ("optimizer.limits=7", "-o optimizer.limits: must be a table of options, found 7"),
        ("sampling.top_p=2", "-o sampling.top_p: must be at most 1, found 2"),
        ("run.sede=2", "-o run.sede: no such option\n  fix: did you mean 'seed'?"),
        ("run.device=gpu", "-o run.device: no device 'gpu'\n  fix: use auto, cpu, cuda, cuda:1 or mps"),
        (
            "optimzer.kl_coef=1",
            "-o optimzer.kl_coef: a recipe has no table 'optimzer'\n  fix: did you mean 'optimizer'?",
        ),
        ("kl_coef=1", "-o kl_coef: 'kl_coef' is not table.option"),
        ("optimizer.kl_coef", "-o optimizer.kl_coef: has no '='"),
        ("optimizer..x=1", "-o optimizer..x: 'optimizer..x' is not a dotted key"),
        ("optimizer.plugin=puss", "-o optimizer.plugin: no optimizer plugin 'puss'\n  fix: did you mean 'push'?"),
        (
            "reward.plugin=given",
            "reward.value: is required\n  fix: set -o reward.value=VALUE, or set it in the recipe",
        ),
        ("reward.plugin=none", "-o reward.plugin: no reward plugin 'none'"),
    ],
)
def test_a_wrong_override_is_refused(recipe_file: Path, override: str, message: str, refusal: Refusal) -> None:
    error = refusal(recipe_file, [override])
    assert str(error).startswith(message)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[run]\nseed = \n", "recipe.toml:2", "Invalid value"),
        ("[run\n", "recipe.toml:1", "Expected"),
        ("[rnu]\n", "recipe.toml:1 [rnu]", "a recipe has no table 'rnu'"),
        ("\nseed = 1\n", "recipe.toml:2 [seed]", "a recipe has no table 'seed'"),
        ("run = 1\n", "recipe.toml:1 [run]", "must be a table"),
        ("[optimizer]\nfor = 3\n", "recipe.toml:2 [optimizer] for", "must be a table"),
        ("[optimizer]\nfor.pull = 3\n", "recipe.toml:2 [optimizer] for.pull", "must be a table"),
        ("[policy]\nplugin = 'nobody'\n", "recipe.toml:2 [policy] plugin", "no policy plugin 'nobody'"),
        ("[optimizer]\nlearning_rate = 1\n", "recipe.toml:1 [optimizer] plugin", "no optimizer plugin is chosen"),
        ("[reward]\nplugin = 'given'\n", "recipe.toml:1 [reward] value", "is required"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(
    recipe_file: Path, text: str, where: str, what: str, refusal: Refusal
) -> None:
    recipe_file.write_text(text)
    error = refusal(recipe_file)
    assert error.where == where
    assert error.what.startswith(what)


def test_a_missing_file_a_folder_and_a_file_that_is_no_text(tmp_path: Path, refusal: Refusal) -> None:
    assert refusal(tmp_path / "none.toml").what == "no such recipe"
    assert refusal(tmp_path).where == str(tmp_path)
    assert refusal(tmp_path / "none.toml").fix == refusal(tmp_path).fix == "give the path of a TOML file"
    (tmp_path / "latin.toml").write_bytes(b"[run]\n# \xe9\n")
    assert refusal(tmp_path / "latin.toml").what == "is not UTF-8 text"


def test_what_was_meant_instead_of_a_path_that_is_no_recipe(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "recipe.toml").touch()
    assert refusal(tmp_path / "recip.toml").fix == "did you mean 'recipe.toml'?"
    assert refusal(tmp_path).fix == f"this is a run: give {tmp_path / 'recipe.toml'}"
    (tmp_path / "pairs.jsonl").write_text("{}")
    assert refusal(tmp_path / "pairs.jsonl").fix.endswith(f"goes to -o preferences.path={tmp_path / 'pairs.jsonl'}")


def test_everything_that_is_wrong_is_told_at_once(recipe_file: Path, refusal: Refusal) -> None:
    error = refusal(recipe_file, ["optimizer.kl_coef=-1", "run.seed=-1", "reward.plugin=given", "reward.value=x"])
    lines = str(error).splitlines()
    assert lines[0] == "3 things are wrong:"
    assert [line.split(":")[0] for line in lines[1:]] == ["-o run.seed", "-o reward.value", "-o optimizer.kl_coef"]


def test_a_plugins_own_check_is_attributed(recipe_file: Path, refusal: Refusal) -> None:
    error = refusal(recipe_file, ["optimizer.beta=11"], {"optimizer": "pull"})
    assert str(error) == "-o optimizer.beta: is beyond all reason\n  fix: try 0.1"
    recipe_file.write_text(recipe_file.read_text().replace("beta = 0.3", "beta = 30"))
    assert refusal(recipe_file, [], {"optimizer": "pull"}).where == "recipe.toml:12 [optimizer.for.pull] beta"
    error = refusal(recipe_file, ["optimizer.learning_rate=11", "optimizer.beta=1"], {"optimizer": "pull"})
    assert (error.where, error.what) == (
        "recipe.toml:10 [optimizer.for.pull]",
        "the learning rate is beyond all reason",
    )


def test_a_union_and_a_path(resolve: Resolve, refusal: Refusal) -> None:
    assert str(refusal(None, ["optimizer.start=7"], {"optimizer": "pull"})) == (
        "-o optimizer.start: must be a path, found 7"
    )
    assert resolve(None, ["optimizer.start=a/b"], {"optimizer": "pull"}).config("optimizer").start.parts == ("a", "b")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("7", 7),
        ("1e-3", 0.001),
        ("true", True),
        ("word", "word"),
        ("'7'", "7"),
        ("[1, 2]", [1, 2]),
        ("{a = 1}", {"a": 1}),
        ("", ""),
        ("2024-01-01", "2024-01-01"),
        ("a=b", "a=b"),
        ("org/model:1", "org/model:1"),
        ("1\nx = 2", "1\nx = 2"),
    ],
)
def test_the_value_of_an_override(raw: str, value: object) -> None:
    assert load_recipe(None, flags={}, overrides=[f"policy.x={raw}"]).overrides == [(("policy", "x"), value)]


def test_an_override_of_another_plugins_settings_is_a_table(refusal: Refusal) -> None:
    assert refusal(None, ["optimizer.for=3"]).where == "-o optimizer.for"


def test_half_of_a_character_is_refused(refusal: Refusal) -> None:
    error = refusal(None, ["eval.against=\udcff"])
    assert error.what.startswith("a lone surrogate")
    assert error.fix


def test_a_model_to_compare_with_that_is_not_there_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    error = refusal(None, [f"eval.against={tmp_path / 'none'}"])
    assert (error.where, error.what) == ("-o eval.against", f"no folder {str(tmp_path / 'none')!r}")
    assert error.fix == "use sft, base or a model's folder"


def test_two_overrides_that_exclude_each_other(refusal: Refusal) -> None:
    error = refusal(None, ["optimizer.limits=7", "optimizer.limits.low=1"], {"optimizer": "push"})
    assert error.what == "another -o sets 'limits' to a value"


def test_a_function_is_named_in_place_of_a_plugin(recipe_file: Path, resolve: Resolve, refusal: Refusal) -> None:
    recipe_file.write_text('[reward]\nplugin = "given"\nvalue = 1\n')
    resolved = resolve(recipe_file, flags={"reward": "my.rewards:kind"})
    assert (resolved.names["reward"], resolved.config("reward").function) == ("function", "my.rewards:kind")
    assert resolve(None, ["reward.plugin=m:f"]).config("reward").function == "m:f"
    assert refusal(None, flags={"reward": "m:missing"}).where == "--reward m:missing"
    qualified = resolve(None, ["reward.value=1"], {"reward": "fake-plugin:given"})
    assert qualified.names["reward"] == "given"
    assert resolve(None, flags={"reward": "rewards/m.py:f"}).names["reward"] == "function", "which knows how to say it"
    assert refusal(None, flags={"optimizer": "m:f"}).what == "no optimizer plugin 'm:f'"
    assert str(recipe_file.resolve().parent) in sys.path


def test_demonstrations_bring_the_sft_table() -> None:
    assert Recipe(tables={"demonstrations": {}}).component_tables() == ["demonstrations", "sft"]
    assert Recipe(flags={"optimizer": "push"}).component_tables() == ["optimizer"]
