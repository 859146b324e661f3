"""`alignkit runs`: what run directories hold, and what is damaged in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit import cli
from alignkit.runs.rundir import RunDir
from alignkit.training.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a finished run, one whose run.json is damaged, and other files."""
    for name in ("good", "deep/bad"):
        with RunDir(tmp_path / name, recipe="[run]\n", digest="d", resume=False, overwrite=False, force=False) as run:
            run.mark_done("align", {"steps": 3}, 1.0)
    (tmp_path / "deep" / "bad" / "run.json").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    folder = tmp_path / "good" / "policy" / "checkpoints"
    for step in (1, 2):
        save_checkpoint(folder, step, tensors={"modules": torch.zeros(5)}, state={}, keep=2)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert cli.run(["runs", *words, "--json"]) == code
    output = capsys.readouterr()
    return json.loads(output.err if code else output.out)


def test_runs_are_listed_and_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "list", str(runs))
    assert found[str(runs / "good")] == "align"
    assert found[str(runs / "deep" / "bad")].startswith("is damaged (JSONDecodeError")
    assert said(capsys, "show", str(runs / "good"))["align"] == {"seconds": 1.0, "steps": 3}
    error = said(capsys, "show", str(runs), code=2)["error"]
    assert (error["what"], error["fix"]) == ("this directory holds no run", f"give {runs / 'good'}")
    error = said(capsys, "show", str(runs / "god"), code=2)["error"]
    assert (error["what"], error["fix"]) == ("no such directory", f"give {runs / 'good'}")
    assert said(capsys, "list", str(runs / "none"), code=2)["error"]["what"] == "no such folder"


def test_a_list_tells_what_each_run_came_to(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "good" / "recipe.toml").write_text('[optimizer]\nplugin = "dpo"\n')
    win = {"value": 0.556, "low": 0.441, "high": 0.679, "n": 25}
    stages = {"align": {}, "eval": {"win_rate/gold": win, "win_rate/gold/policy, best of 4": win, "on": "prompts"}}
    (runs / "good" / "run.json").write_text(json.dumps({"stages": stages}))
    assert said(capsys, "list", str(runs))[str(runs / "good")] == "dpo: align, eval; wins 56% [44, 68] by gold"


def test_damage_is_named_file_by_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = runs / "good"
    assert said(capsys, "verify", str(good)) == {"run": str(good), "damaged": 0}
    file = good / "policy" / "checkpoints" / "step-00000001" / "modules.pt"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    message = said(capsys, "verify", str(good), code=3)["error"]["message"]
    assert "1 damaged:" in message
    assert "policy/checkpoints/step-00000001/modules.pt: its content changed" in message
    assert "run.json is damaged" in said(capsys, "verify", str(runs / "deep" / "bad"), code=3)["error"]["message"]
