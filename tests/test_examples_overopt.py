"""examples/overoptimisation.toml: gold rises and falls with the KL while the learned reward rises."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_demo.demo import run_demo
from demo_files import FEW_STEPS, make_small_demo

from alignkit import cli
from alignkit.runs.reporting import Reporter

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of the example, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    spec = importlib.util.spec_from_file_location("overoptimisation", EXAMPLES / "overoptimisation.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_gold_rises_and_falls_while_the_learned_reward_rises(example: ModuleType) -> None:
    run_demo(Path("demo"), seed=0, reporter=Reporter())
    words = ["compare", "examples/overoptimisation.toml", "--seeds", "3", "--best-of", "512", "--jobs", "2"]
    assert cli.run([*words, "--out", "three", "--quiet"]) == 0
    check_shape(json.loads(Path("three/comparison.json").read_text()), "recipe", "best of n")


def check_shape(found: dict[str, Any], trained: str, best_of_n: str) -> None:
    """Of training for each seed, in means of five batches; of best of n over all seeds, where one seed is too few."""
    chosen = found["best_of_n"][best_of_n]
    for rows in (*(means(found["curves"][trained], seed) for seed in range(3)), chosen):
        best = max(row["gold"] for row in rows)
        gain = best - rows[0]["gold"]
        assert gain > 0.2
        assert rows[-1]["gold"] < best - 0.25 * gain
        assert rows[-1]["reward"] > rows[0]["reward"] + 0.5
        assert rows[-1]["reward"] > max(row["reward"] for row in rows) - 0.1
        assert 0 < found["fits"][best_of_n if rows is chosen else trained]["peak_kl"] < rows[-1]["kl"]
    for name in (trained, best_of_n):
        assert found["fits"][name]["verdict"].startswith("past the peak")
    runs = found["fits"][trained]["runs"]
    assert len(runs) == 3
    assert all(run["lost_by_alarm"] < 0.5 for run in runs)


def means(curve: list[dict[str, float]], seed: int) -> list[dict[str, float]]:
    own = [row for row in curve if row["seed"] == seed]
    return [
        {key: sum(row[key] for row in own[end - 5 : end]) / 5 for key in ("kl", "reward", "gold")}
        for end in range(5, len(own) + 1)
    ]


@pytest.mark.slow
def test_the_script_runs_from_the_demo_to_its_table(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    make_small_demo(Path("demo"))
    options = [
        option.replace(".for.ppo", "") for option in FEW_STEPS if ".for.dpo" not in option and "ipo" not in option
    ]
    options += ["optimizer.iterations=6", "eval.count=3", "reward.for.model.train.n_epochs=1"]
    example.train_members()
    found = example.compare(*(word for option in options for word in ("-o", option)), "--seeds", "1", "--best-of", "16")
    names = {f"plugin={plugin} gold_fall={fall}" for plugin in ("model", "ensemble") for fall in ("0", "0.3")}
    assert set(found["variants"]) == names
    assert len(found["best_of_n"]) == 2
    capsys.readouterr()
    example.show(found)
    printed = capsys.readouterr().out
    assert all(name.split()[0] in printed for name in names)
