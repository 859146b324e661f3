"""`alignkit demo`: the whole path with a few steps, and, slowly, the figures that it must reach."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_demo import command, comparison, demo
from alignkit_demo.data import Sizes
from alignkit_demo.measures import agreement_with_gold
from alignkit_demo.table import next_commands

from alignkit import Group, Prompt, cli
from alignkit.errors import InputError
from alignkit.interfaces import Feed
from alignkit.options import RolloutOptions
from alignkit.plugins import registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe
from alignkit.runs.reporting import Reporter
from alignkit.versions import FIRST_PARTY

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.plugins import Registration

FEW_STEPS = ("optimizer.for.ppo.iterations=1", "optimizer.for.ppo.batch_size=6", "reward.train.n_epochs=1")
SMALL = Sizes(raw=64, demonstrations=24, prompts=40, evaluation=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of a few steps, made by the command."""
    path = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        run_demo = demo.run_demo
        patch.setattr(demo, "run_demo", lambda *a, **k: run_demo(*a, **k, sizes=SMALL, overrides=FEW_STEPS))
        assert cli.run(["demo", "--out", str(path), "--seed", "3", "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_summary_has_a_row_of_finite_figures_for_each_model(summary: dict[str, Any]) -> None:
    rows = {row["model"]: row for row in summary["models"]}
    assert list(rows) == ["base", "sft", "dpo", "ppo"]
    for row in rows.values():
        assert row.keys() == {"model", "gold", "reward", "kl", "win_rate", "seconds"}
        assert all(math.isfinite(value) for key, value in row.items() if key != "model")
    assert (rows["sft"]["kl"], rows["sft"]["win_rate"]) == (pytest.approx(0, abs=1e-5), 0.5)
    assert summary["seed"] == 3
    assert summary["on"] == "6 unseen prompts"
    assert summary["seconds"] > 0
    assert summary["reward_model"].keys() == {"agreement", "best_possible", "annotators"}


def test_examples_are_unseen_prompts_with_a_reply_of_each_model(folder: Path, summary: dict[str, Any]) -> None:
    lines = (folder / "data" / "evaluation.jsonl").read_text().splitlines()
    unseen = [f"user: {json.loads(line)['prompt'][0]['content']}" for line in lines]
    assert [example["prompt"] for example in summary["examples"]] == unseen[:3]
    assert all(example.keys() == {"prompt", "base", "sft", "dpo", "ppo"} for example in summary["examples"])


def test_the_models_are_where_the_table_says(folder: Path) -> None:
    for path in ("pretraining/sft", "ppo/sft", "ppo/reward", "ppo/policy", "dpo/policy"):
        assert (folder / path / "model.safetensors").is_file()
    assert (folder / "dpo" / "preferences.jsonl").read_text() == (folder / "ppo" / "preferences.jsonl").read_text()


@pytest.mark.parametrize("which", [0, 1])
def test_what_to_try_next_works_as_it_is_printed(folder: Path, which: int) -> None:
    words = next_commands(folder)[which]
    trains_a_reward = which == 1
    few_steps = [word for option in FEW_STEPS[: 2 + trains_a_reward] for word in ("-o", option)]
    assert cli.run([*words[1:], *few_steps, "--quiet"]) == 0
    if which == 0:
        assert 'plugin = "ipo"' in (folder / "ipo" / "recipe.toml").read_text()
    else:
        assert json.loads((folder / "infonce" / "reward" / "alignkit.json").read_text())["loss"] == "infonce"


def test_a_folder_with_a_demo_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--out", str(folder)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_json_and_the_table_show_the_same_figures(
    folder: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: summary)
    assert cli.run(["demo", "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert cli.run(["demo", "--out", str(folder)]) == 0
    shown = capsys.readouterr().out
    for row in summary["models"]:
        assert f"{row['gold']:.2f}" in shown
    assert summary["examples"][0]["ppo"][:20] in shown
    assert "Support desk: on 6 unseen prompts, " in shown
    assert command.demo.__doc__


def test_agreement_with_gold_leaves_out_pairs_of_equal_gold() -> None:
    prompt = Prompt.of("Where is my kettle?", {"intent": "late", "product": "kettle"})
    replies = ("Your kettle will reach you within two days.", "Hello.", "Hi.")
    group = Group(prompt, replies)
    assert agreement_with_gold([[1.0, 0.0, 0.5]], [group]).value == 1.0
    assert agreement_with_gold([[0.2, 0.0, 0.5]], [group]).value == 0.5
    assert agreement_with_gold([[0.0, 1.0, 0.5]], [group]).value == 0.0
    assert agreement_with_gold([[0.0, 1.0, 0.5]], [group]).count == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_the_demo_reaches_its_figures(tmp_path: Path, seed: int) -> None:
    assert cli.run(["demo", "--out", str(tmp_path / "demo"), "--seed", str(seed), "--quiet"]) == 0
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    rows = {row["model"]: row for row in summary["models"]}
    assert rows["ppo"]["win_rate"] >= 0.80
    assert rows["dpo"]["win_rate"] >= 0.75
    assert summary["reward_model"]["agreement"]["value"] >= 0.78
    assert all(rows[name]["kl"] < 8 for name in ("dpo", "ppo"))


def test_settings_of_the_comparison_give_every_algorithm_the_same_prompts(folder: Path) -> None:
    own = [plugin for plugin in registry().registrations if plugin.role == "optimizer" and is_compared(plugin)]
    assert set(comparison.algorithms(folder)) == {plugin.name for plugin in own}
    for plugin in own:
        recipe = load_recipe(folder / demo.COMPARISON, flags={"optimizer": plugin.name}, overrides=[])
        options = resolve(recipe, registry()).config("optimizer")
        if isinstance(options, RolloutOptions):
            assert options.iterations * options.batch_size == 1440
            assert options.group_size == 4
        else:
            # 1600 prompts, of whose rankings a tenth is held out
            assert options.n_epochs == 1


def is_compared(plugin: Registration) -> bool:
    """Whether a plugin of this project aligns a policy, by our own loop."""
    if plugin.distribution not in FIRST_PARTY or plugin.distribution in ("alignkit-trl", "alignkit-reward"):
        return False
    target: Any = plugin.load()
    return target.consumes is not Feed.DEMONSTRATIONS


def test_a_name_without_settings_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="simpo"):
        comparison.compare(folder, ["simpoo"], reporter=Reporter())


@pytest.mark.slow
def test_the_comparison_goes_on_from_the_demo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = (folder / "summary.json").read_bytes()
    assert cli.run(["demo", "--out", str(folder), "--compare", "kto", "--json"]) == 0
    assert (folder / "summary.json").read_bytes() == summary
    found = json.loads(capsys.readouterr().out)["comparison"]
    written = folder / "comparison" / "comparison.json"
    assert found == json.loads(written.read_text())
    assert list(found["variants"]) == ["kto"]
    assert (found["judge"], found["seeds"]) == ("gold", [3])
    row = found["variants"]["kto"]
    run = folder / "comparison" / "runs" / "kto" / "seed-3" / "run.json"
    stages = json.loads(run.read_text())["stages"]
    assert row["gold"]["value"] == pytest.approx(stages["eval"]["policy"]["gold"]["value"], abs=1e-3)
    assert row["win_rate"]["value"] == pytest.approx(stages["eval"]["win_rate/gold"]["value"], abs=1e-3)
    assert row["spent"].keys() == {"prompts", "response_tokens", "seconds", "flops"}
    assert 200 < row["memory"] < 4000
    written_at = run.stat().st_mtime_ns
    assert cli.run(["demo", "--out", str(folder), "--compare", "orpo,kto", "--quiet"]) == 0
    assert json.loads(written.read_text())["variants"].keys() == {"orpo", "kto"}
    assert run.stat().st_mtime_ns == written_at
    assert "orpo" in capsys.readouterr().out
