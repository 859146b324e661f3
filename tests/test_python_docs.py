"""docs/how-to/python.md does what it says: its snippets run in their order, in a folder as it describes."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w
from python_material import PAIRS, dpo_tables, write_material
from test_docs import code_blocks

from alignkit import read_groups

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).parent.parent / "docs/how-to/python.md"


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_material(tmp_path)
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(dpo_tables(tmp_path)))
    monkeypatch.chdir(tmp_path)
    notebook = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    blocks = code_blocks(PAGE, "python")
    assert len(blocks) == 8
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{PAGE.name}, snippet {number}", "exec"), vars(notebook))
    found = vars(notebook)
    assert found["before"].summary["align"]["steps"] == 3
    assert len(found["losses"]) == 2
    assert found["result"].steps == 1
    comment = "options[\"optimizer.beto\"]; no such option; did you mean 'beta'?"
    assert comment in capsys.readouterr().out
    assert comment in PAGE.read_text(encoding="utf-8")
    left = ("runs/dpo/policy", "runs/grpo/policy", "runs/ppo-by-hand", "runs/reward-by-hand", "aligned")
    assert all((tmp_path / name / "model.safetensors").exists() for name in left)
    ranked = list(read_groups(tmp_path / "ranked.jsonl"))
    assert [group.prompt for group in ranked] == [group.prompt for group in PAIRS[:4]]
    assert all(group.preferred_pairs() for group in ranked)
