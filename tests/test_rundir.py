"""A run directory: one run at a time, nothing overwritten without being asked to, metrics without doubles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import InputError
from alignkit.runs.rundir import MetricsFile, RunDir


def rundir(path: Path, **changes: Any) -> RunDir:
    return RunDir(path, **{"recipe": "", "digest": "d", "resume": False, "overwrite": False, "force": False, **changes})


def test_a_second_run_is_refused_while_the_first_holds_the_directory(tmp_path: Path) -> None:
    with rundir(tmp_path), pytest.raises(InputError, match="another run is using this directory") as refused:
        rundir(tmp_path, resume=True)
    assert refused.value.exit_code == 2
    with rundir(tmp_path, resume=True):
        pass


def test_a_start_that_came_to_nothing_is_made_again(tmp_path: Path) -> None:
    """A server that doesn't answer, say, and the same command with another address."""
    with rundir(tmp_path) as run:
        run.remember("policy", "packed")
    with rundir(tmp_path, recipe="[run]\n", digest="e") as run:
        assert run.state["digest"] == "e"
        assert "notes" not in run.state
    assert (tmp_path / "recipe.toml").read_text() == "[run]\n"
    (tmp_path / "policy").mkdir()
    with pytest.raises(InputError, match="holds a run"):
        rundir(tmp_path)


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


@pytest.mark.parametrize("out", ["", ".", "mine"])
def test_a_folder_with_other_files_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path, tmp_path / "mine"):
        (folder / "recipe.toml").write_text("[optimizer]")
    for changes in ({}, {"overwrite": True}, {"resume": True}, {"alone": ["eval"]}):
        with pytest.raises(InputError, match=r"is not empty and holds no run \((mine, )?recipe.toml\)"):
            rundir(Path(out), recipe="[run]", **changes)
    assert (tmp_path / out / "recipe.toml").read_text() == "[optimizer]"
    assert not (tmp_path / out / "run.json").exists()


def test_a_stage_alone_leaves_the_recipe_of_the_run_and_a_refused_one_changes_nothing(tmp_path: Path) -> None:
    with rundir(tmp_path, recipe="the run's") as run:
        run.mark_done("align", {}, 1.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="stage align has already run here"):
        rundir(tmp_path, recipe="another", digest="other", alone=["align"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with rundir(tmp_path, recipe="another", digest="other", alone=["eval"]) as run:
        run.mark_done("eval", {"prompts": 1}, 1.0)
        (tmp_path / "samples.jsonl").touch()
    with rundir(tmp_path, recipe="another", digest="other", alone=["eval"]) as run:
        assert run.summary()["eval"]["prompts"] == 1, "kept until another one ends"
    assert (tmp_path / "samples.jsonl").exists()
    assert (tmp_path / "recipe.toml").read_text() == "the run's"
    assert (tmp_path / "eval.toml").read_text() == "another"
    with rundir(tmp_path, resume=True) as run:
        assert run.is_done("align")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"stages": []}', '{"stages": {"sft": 3}}', "{}"])
def test_a_damaged_run_json_is_said_and_may_be_overwritten(tmp_path: Path, text: str) -> None:
    with rundir(tmp_path):
        pass
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: is damaged .* are untouched\n  fix: restore it"):
        rundir(tmp_path, resume=True)
    with rundir(tmp_path, overwrite=True) as run:
        assert run.summary() == {}


@pytest.mark.parametrize("text", [b"\x00\xff\n", b"[1]\nnull\n3\n", b'{"step": 1}\n', b'{"stage": "policy", "st'])
def test_lines_of_metrics_that_are_none_are_dropped(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).write("policy", {"step": 1, "loss": 1.0})
    path.write_bytes(text + b"\n" + path.read_bytes())
    MetricsFile(path).write("policy", {"step": 2, "loss": 1.0})
    assert [record["step"] for record in map(json.loads, path.read_text().splitlines())] == [1, 2]


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
    resumed.write("policy", {"step": 2, "alarm": "alarm_kl", "loss": 15.0})
    resumed.write("policy", {"step": 2, "loss": 20.0})
    resumed.write("policy", {"step": 3, "loss": 30.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["stage"], r["step"], r["loss"]) for r in records] == [
        ("policy", 1, 1.0), ("sft", 3, 0.0), ("policy", 2, 15.0), ("policy", 2, 20.0), ("policy", 3, 30.0),
    ]  # fmt: skip
    MetricsFile(path).write("policy", {"step": 3, "loss": 31.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["alarm"] for r in records if "alarm" in r] == ["alarm_kl"]
    MetricsFile(path).write("policy", {"step": 2, "loss": 21.0})
    assert "alarm" not in path.read_text()
