"""What a policy says of how it is run is shown once and kept in run.json."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from alignkit.runs.rundir import RunDir
from alignkit.runs.stages import Stages
from alignkit.samplers import OwnSampler
from alignkit.testing import TinyPolicy

if TYPE_CHECKING:
    from pathlib import Path


class Talking(TinyPolicy):
    said = "runs backwards"

    def explain(self) -> str:
        return self.said


def test_the_note_is_shown_when_it_changes_and_kept(tmp_path: Path) -> None:
    shown: list[str] = []
    recipe: Any = SimpleNamespace(
        run=SimpleNamespace(seed=0, metrics=(), threads=0), build=lambda table, **_: Talking(), parts={}
    )
    reporter: Any = SimpleNamespace(note=shown.append)
    with RunDir(tmp_path, recipe="", digest="", resume=False, overwrite=False, force=False) as rundir:
        stages = Stages(recipe, rundir, reporter, lambda record: None, OwnSampler(), resume=False, force=False)
        stages._policy(None)
        stages._policy(None)
        assert shown == ["policy: runs backwards"]
        assert json.loads((tmp_path / "run.json").read_text())["notes"] == {"policy": "runs backwards"}
        Talking.said = ""
        stages._policy(None)
    assert shown == ["policy: runs backwards"]
    assert TinyPolicy().explain() == ""
