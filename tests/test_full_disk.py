"""On a disk that is full the message says so and how many bytes are needed, and nothing that was saved is lost.

tests/full_disk.py does the writing, on a tmpfs of one MiB in a mount namespace of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import alignkit
from alignkit.runs.algorithm import save_trained
from alignkit.testing import TinyPolicy
from tests.full_disk import GROUPS, Likelihood

ROOT = Path(__file__).parent.parent
OWN_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"']
SAID = r"(.*): the disk is full: (.*) needs ([\d,]+) bytes, ([\d,]+) are free; .*\n  fix: free"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    disk, good = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("good")
    try:
        allowed = subprocess.run([*OWN_DISK, str(disk), "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this system lets no one mount a disk of their own")
    words = [sys.executable, "-m", "tests.full_disk", str(disk), str(good)]
    done = subprocess.run([*OWN_DISK, str(disk), *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "disk": disk, "good": good}


def parts(message: str) -> tuple[str, str, int, int]:
    """(where, what, bytes needed, bytes free)."""
    said = re.match(SAID, message)
    assert said, message
    return said[1], said[2], int(said[3].replace(",", "")), int(said[4].replace(",", ""))


def test_a_checkpoint_that_does_not_fit_leaves_the_previous_ones_from_which_the_run_goes_on(
    found: dict[str, Any],
) -> None:
    where, what, needed, free = parts(found["training"]["checkpoint"])
    assert (where, what) == (f"{found['disk']}/run/checkpoints", "a checkpoint")
    weights = sum(tensor.numel() * 4 for tensor in load_file(found["good"] / "whole/model.safetensors").values())
    steps = 8 * 4
    assert 3 * weights <= needed < 3 * weights + 10 * steps, "weights, two moments of each, and counts of steps"
    assert free < needed
    assert found["training"]["left"] == ["step-00000001", "step-00000002"]
    assert found["training"]["equal"]


def test_files_of_a_run_say_their_bytes(found: dict[str, Any], tmp_path: Path) -> None:
    files = found["files"]
    alignkit.write_groups(tmp_path / "groups.jsonl", GROUPS)
    sizes = {"groups": (tmp_path / "groups.jsonl").stat().st_size, "page": 2 * 5000, "recipe": 5000}
    places = {"groups": "groups.jsonl", "page": "report.html", "recipe": "new/recipe.toml", "metrics": "metrics.jsonl"}
    for name, place in places.items():
        where, what, needed, free = parts(files[name])
        assert (where, what, free) == (f"{found['disk']}/{place}", Path(place).name, 0)
        assert name not in sizes or needed == sizes[name]
    assert 400 * len('"figure 100": 1, ') < parts(files["metrics"])[2] < 400 * 30


def test_a_line_that_was_cut_off_is_dropped(found: dict[str, Any]) -> None:
    assert [json.loads(line)["step"] for line in found["files"]["steps"].splitlines()] == [1, 2, 8]


def test_commands_end_with_one_message(found: dict[str, Any]) -> None:
    commands = found["commands"]
    code, said = commands["score"]
    assert code == 1
    assert parts(said)[:2] == (f"error: {found['disk']}/scored.jsonl", "scored.jsonl")
    for name in ("label", "label, some room"):
        code, said = commands[name]
        assert code == 1
        assert said.startswith(f"error: {found['disk']}/labels.db: the disk is full: no space for labels.db, "), said
    assert commands["label, room"][0] == 0


def test_the_final_model_says_its_bytes(found: dict[str, Any], tmp_path: Path) -> None:
    save_trained(Likelihood(policy=TinyPolicy()), tmp_path / "tiny")
    for name, folder in (("tiny", tmp_path / "tiny"), ("hf", found["good"] / "llama")):
        where, what, needed, _ = parts(found["models"][name])
        assert (where, what) == (f"{found['disk']}/policy", "the model")
        assert needed == sum(tensor.numel() * 4 for tensor in load_file(folder / "model.safetensors").values())
