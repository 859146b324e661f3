"""`alignkit run`, killed by SIGKILL at a random step and resumed, ends bit for bit where an uninterrupted run does."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

STEPS = {
    "ppo": ("iterations=4", "batch_size=6", "minibatch_size=3", "n_epochs=2", "save_every=1"),
    "dpo": ("minibatch_size=4", "n_epochs=2", "save_every=1"),
}


def command(demo: Path, algorithm: str, out: Path, *more: str) -> list[str]:
    options = [word for option in STEPS[algorithm] for word in ("-o", f"optimizer.{option}")]
    return [
        sys.executable, "-m", "alignkit", "run", str(demo / "from-sft.toml"), "--optimizer", algorithm, "--quiet",
        "-o", "sampling.max_tokens=16", *options, "--out", str(out), *more,
    ]  # fmt: skip


def run_until_step(words: list[str], metrics: Path, step: int) -> int:
    """Starts the command and kills it once `step` steps have been logged; its exit code."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            process.kill()
        time.sleep(0.002)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]
    return process.returncode


@pytest.mark.parametrize("algorithm", ["ppo", "dpo"])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(demo_folder: Path, tmp_path: Path, algorithm: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(demo_folder, algorithm, whole), check=True, stdout=subprocess.DEVNULL)
    step = random.randrange(1, 8)
    run_until_step(command(demo_folder, algorithm, killed), killed / "metrics.jsonl", step)
    assert not (killed / "policy" / "model.safetensors").exists()
    subprocess.run(command(demo_folder, algorithm, killed, "--resume"), check=True, stdout=subprocess.DEVNULL)
    weights = [(folder / "policy" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1], f"killed at step {step}"
