"""A run directory: one run at a time, nothing overwritten without being asked to, metrics without doubles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from alignkit.errors import InputError
from alignkit.runs.rundir import MetricsFile, RunDir

if TYPE_CHECKING:
    from pathlib import Path


def rundir(path: Path, **changes: Any) -> RunDir:
    return RunDir(path, **{"recipe": "", "digest": "d", "resume": False, "overwrite": False, "force": False, **changes})


def test_a_second_run_is_refused_while_the_first_holds_the_directory(tmp_path: Path) -> None:
    with rundir(tmp_path), pytest.raises(InputError, match="another run is using this directory") as refused:
        rundir(tmp_path, resume=True)
    assert refused.value.exit_code == 2
    with rundir(tmp_path, resume=True):
        pass


def test_a_used_directory_is_refused_resumed_or_overwritten(tmp_path: Path) -> None:
    with rundir(tmp_path) as run:
        run.mark_done("sft", {"steps": 3}, 1.0)
    (tmp_path / "sft").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds a run\n  fix: use --resume, --overwrite") as refused:
        rundir(tmp_path)
    assert str(tmp_path) in str(refused.value)
    with rundir(tmp_path, resume=True) as run:
        assert run.is_done("sft")
        assert run.summary() == {"sft": {"seconds": 1.0, "steps": 3}}
    with rundir(tmp_path, overwrite=True) as run:
        assert not run.is_done("sft")
    assert not (tmp_path / "sft").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_with_a_changed_recipe_needs_force(tmp_path: Path) -> None:
    with rundir(tmp_path):
        pass
    with pytest.raises(InputError, match="recipe has changed"):
        rundir(tmp_path, resume=True, digest="other")
    with rundir(tmp_path, resume=True, digest="other", force=True):
        pass


def test_run_json_tells_versions_and_the_command(tmp_path: Path) -> None:
    with rundir(tmp_path, recipe="[run]\n"):
        pass
    state = json.loads((tmp_path / "run.json").read_text())
    assert "torch" in state["versions"]
    assert isinstance(state["argv"], list)
    assert (tmp_path / "recipe.toml").read_text() == "[run]\n"


def test_metrics_of_repeated_steps_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (1, 2, 3):
        first.write("policy", {"step": step, "loss": step})
    first.write("sft", {"step": 3, "loss": 0.0})
    with path.open("a") as file:
        file.write('{"stage": "pol')  # killed within a write
    resumed = MetricsFile(path)
    resumed.write("policy", {"step": 2, "loss": 20.0})
    resumed.write("policy", {"step": 3, "loss": 30.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["stage"], r["step"], r["loss"]) for r in records] == [
        ("policy", 1, 1.0), ("sft", 3, 0.0), ("policy", 2, 20.0), ("policy", 3, 30.0),
    ]  # fmt: skip
