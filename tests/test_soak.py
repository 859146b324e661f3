"""`make soak` in short: a kill inside a save, one while the model is written, and the model of a run without kills."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import soak

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_a_kill_inside_a_save_and_one_while_the_model_is_written(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    material = soak.make_material(tmp_path / "material")
    words = soak.command(material, "dpo", out)
    assert soak.killed(words, out, "save", 0.0)
    assert not (out / "policy" / "config.json").exists()
    assert soak.killed(words, out, "model", 0.0)
    assert "align" not in json.loads((out / "run.json").read_text())["stages"]
    assert list(out.glob("policy/checkpoints/step-*/manifest.json"))
    assert not soak.killed(words, out, "any", float("inf"))
    typed = [sys.executable, "-m", "alignkit", *soak.command(material, "dpo", whole)]
    subprocess.run(typed, check=True, capture_output=True)
    assert soak.left(out) == soak.left(whole)
    assert soak.left(whole)[0], "it wrote a model"
