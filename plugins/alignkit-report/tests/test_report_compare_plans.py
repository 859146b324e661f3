"""Plans of `alignkit compare`: sweeps of plugins, budgets and who can't be held to them, resources of a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING

import pytest
from alignkit_report.compare import cluster
from alignkit_report.compare.budget import MANY, Budget, Spending, check_budget, spending, spent_in
from alignkit_report.compare.cells import cells_of, sweeps_of
from alignkit_report.compare.cluster import OnRay, check_resources, resources_of
from alignkit_report.compare.comparison import Comparison
from alignkit_report.compare.jobs import Ended, Job, wait_for
from alignkit_report.compare.shared import shared_stages

from alignkit import InputError
from alignkit.commands import read_recipe
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from alignkit.commands import Resolved

RECIPE = """
[policy]
model = "model"
[preferences.for.dataset]
path = "pairs.jsonl"
[preferences.for.function]
function = "labels:ranked"
[reward]
plugin = "model"
[optimizer.for.grpo]
batch_size = 4
[eval]
rewards = { gold = { plugin = "function", function = "labels:gold" } }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_llama(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "labels.py").write_text(
        "def ranked(ask):\n    return []\n\ndef gold(prompts, completions):\n    return []\n"
    )
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "recipe.toml"


def planned(recipe: Path, *sweeps: str) -> dict[str, Resolved]:
    """Variant -> its recipe."""
    cells = cells_of(["ppo"], sweeps_of(sweeps), [0])
    found = Comparison(recipe, cells, recipe.parent / "out").check()
    return {cell.variant.name: one for cell, one in found.items()}


def test_plugins_are_swept_with_their_own_settings_and_have_shared_stages_of_their_own(recipe: Path) -> None:
    found = planned(recipe, "preferences.plugin=dataset,function", 'reward.loss="pairwise","infonce"')
    assert {name: one.names["preferences"] for name, one in found.items()} == {
        'ppo plugin=dataset loss="pairwise"': "dataset",
        'ppo plugin=dataset loss="infonce"': "dataset",
        'ppo plugin=function loss="pairwise"': "function",
        'ppo plugin=function loss="infonce"': "function",
    }
    assert found['ppo plugin=function loss="pairwise"'].config("preferences").function == "labels:ranked"
    stages = {stage for one in found.values() for stage in shared_stages(one)}
    assert sorted(stage.name for stage in stages) == ["preferences"] * 2 + ["reward"] * 4


def resolved(recipe: Path, optimizer: str, *options: str) -> Resolved:
    chosen = ["preferences.plugin=dataset", *options]
    return read_recipe(recipe, flags={"optimizer": optimizer}, overrides=chosen)


@pytest.mark.parametrize(
    ("optimizer", "budget", "options", "said"),
    [
        ("trl-dpo", "seconds=5", (), "trl-dpo has a loop of its own, which no budget of seconds ends"),
        ("trl-dpo", "flops=5", (), "trl-dpo has a loop of its own"),
        ("dpo", "prompts=5", ("run.rounds=2",), "samples its preferences in rounds"),
    ],
)
def test_a_budget_that_an_algorithm_can_not_be_held_to_is_refused(
    recipe: Path, optimizer: str, budget: str, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check_budget(resolved(recipe, optimizer, *options), Budget.of(budget))


def test_flops_of_a_policy_that_counts_none_are_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = resolved(recipe, "dpo")
    monkeypatch.setattr(one.load("policy"), "counts_flops", False)
    check_budget(one, Budget.of("seconds=5"))
    with pytest.raises(InputError, match="the policy hf doesn't count its FLOPs"):
        check_budget(one, Budget.of("flops=5"))


def test_budgets_become_options_of_each_algorithm(recipe: Path) -> None:
    for optimizer, key in (("grpo", "iterations"), ("dpo", "n_epochs")):
        one = resolved(recipe, optimizer)
        for budget in ("seconds=1.5", "response_tokens=40", "flops=2e+16"):
            check_budget(one, Budget.of(budget))
            overrides = spending(one, Budget.of(budget), None).overrides
            assert overrides == (f"optimizer.{key}={MANY}", f"optimizer.budget.{budget}")
            assert getattr(resolved(recipe, optimizer, *overrides).config("optimizer"), key) == MANY
    assert spending(resolved(recipe, "grpo"), Budget.of("prompts=11"), None) == Spending(
        12, ("optimizer.iterations=3",)
    )
    check_budget(resolved(recipe, "trl-dpo"), Budget.of("prompts=5"))
    check_budget(resolved(recipe, "trl-dpo"), None)


def test_what_a_run_has_spent_is_what_it_says(tmp_path: Path) -> None:
    spent = {"prompts": 4, "response_tokens": 9, "seconds": 2.5, "flops": 1e9}
    (tmp_path / "run.json").write_text(json.dumps({"stages": {"align": {"seconds": 7.0, "spent": spent}}}))
    assert spent_in(tmp_path, Spending(3)) == spent
    (tmp_path / "run.json").write_text(json.dumps({"stages": {"align": {"seconds": 7.0}}}))
    assert spent_in(tmp_path, Spending(3)) == {"prompts": 3, "seconds": 7.0}


def test_resources_are_cpus_and_gpus() -> None:
    assert resources_of("cpus=2,gpus=0.5") == (2.0, 0.5)
    assert resources_of("gpus=1") == (None, 1.0)
    assert resources_of("") == (None, None)
    for wrong in ("2", "cpus=", "cpus=-1", "tpus=1", "cpus=1,cpus=2"):
        with pytest.raises(InputError, match="is not cpus=N,gpus=N"):
            resources_of(wrong)


def test_what_no_machine_has_is_refused() -> None:
    machines = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]
    check_resources({"CPU": 4.0, "GPU": 0.0}, machines)
    check_resources({"CPU": 2.0, "GPU": 1.0}, machines)
    with pytest.raises(InputError, match="no machine of the cluster has 4 CPUs and 1 GPUs"):
        check_resources({"CPU": 4.0, "GPU": 1.0}, machines)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'alignkit-report\[ray\]'"):
        OnRay()


def test_a_task_stops_its_run_once_the_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS_BETWEEN_LOOKS", 0.01)
    (tmp_path / "stop").touch()
    with subprocess.Popen(["sleep", "60"]) as child:
        status, _ = cluster._wait(tmp_path / "stop", child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == -SIGTERM


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a running process holds")
def test_a_job_s_memory_is_its_own_and_not_that_of_its_parent() -> None:
    held = b"x" * 300 * 2**20
    with subprocess.Popen([sys.executable, "-c", "import time; held = b'x' * 100 * 2**20; time.sleep(1)"]) as child:
        status, peak = wait_for(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    assert 100 < peak < 200
    assert len(held) > 0


def test_a_task_starts_nothing_where_it_can_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("dpo", ("--version",), Path("logs") / "dpo.log")
    ended = cluster._execute(job, tmp_path, tmp_path / "stop", 1)
    assert ended.code == 1
    assert f"doesn't see {tmp_path / 'logs'}: use a folder that all machines share" in ended.said
    (tmp_path / "logs").mkdir()
    (tmp_path / "stop").touch()
    monkeypatch.chdir(tmp_path)
    assert cluster._execute(job, tmp_path, tmp_path / "stop", 1) == Ended(128 + SIGTERM)
    assert not (tmp_path / "logs" / "dpo.log").exists()
