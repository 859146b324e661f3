"""`alignkit run --rounds 2` with a trained reward model, killed by SIGKILL in its second round, then resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from alignkit.records import read_groups

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def command(demo: Path, out: Path, *more: str) -> list[str]:
    options = ("optimizer.minibatch_size=4", "optimizer.save_every=1", "run.round_samples=4", "sampling.max_tokens=16")
    given = [word for option in options for word in ("-o", option)]
    return [
        sys.executable, "-m", "alignkit", "run", str(demo / "from-sft.toml"), "--optimizer", "dpo", "--rounds", "2",
        "--best-of", "2", "--quiet", *given, "--out", str(out), *more,
    ]  # fmt: skip


def test_killed_in_the_second_round_and_resumed_is_bitwise_the_uninterrupted_run(
    demo_folder: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(demo_folder, whole), check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(command(demo_folder, killed), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    checkpoints = killed / "rounds/2/policy/checkpoints"
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(checkpoints.glob("step-*/manifest.json"))) >= 2:
            process.kill()
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "policy").exists()
    subprocess.run(command(demo_folder, killed, "--resume"), check=True, stdout=subprocess.DEVNULL)
    for name in ("rounds/1/policy", "rounds/2/policy", "policy"):
        weights = [(folder / name / "model.safetensors").read_bytes() for folder in (whole, killed)]
        assert weights[0] == weights[1], name
    ranked = [(folder / "rounds/2/preferences.jsonl").read_bytes() for folder in (whole, killed)]
    assert ranked[0] == ranked[1]
    groups = list(read_groups(whole / "rounds/2/preferences.jsonl"))
    assert all(group.source == "reward" and group.preferred_pairs() for group in groups)
