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

OFFLINE = ("minibatch_size=4", "n_epochs=2", "save_every=1")
ONLINE = ("iterations=4", "batch_size=6", "minibatch_size=3", "save_every=1")
REUSED = (*ONLINE, "n_epochs=2")
STEPS = {
    "ppo": REUSED,
    "dpo": OFFLINE,
    "beta-dpo": OFFLINE,
    "orpo": OFFLINE,
    "list-dpo": OFFLINE,
    "kto": OFFLINE,
    "ppo-kl": REUSED,
    "trpo": (*REUSED, "cg_iterations=3"),
    "a2c": (*ONLINE, "kl_controller=adaptive"),
    "grpo": REUSED,
    "rloo": (*REUSED, "normalize_rewards=true"),
    "reinforce": ONLINE,
    "dapo": (*REUSED, "kl_coef=0.1"),
}

pytestmark = pytest.mark.slow  # `make soak` kills a few runs in CI


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "alignkit", "run", str(recipe), "--quiet", "-o", "sampling.max_tokens=16"]
    return [*words, "--out", str(out), *more]


def options(table: str, *settings: str) -> list[str]:
    return [word for setting in settings for word in ("-o", f"{table}.{setting}")]


def run_until_step(words: list[str], metrics: Path, step: int, stage: str = "policy") -> int:
    """Starts the command and kills it once `step` steps of the stage have been logged; its exit code."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    said = f'"stage": "{stage}"'.encode()
    while process.poll() is None and time.monotonic() < deadline:
        lines = metrics.read_bytes().splitlines() if metrics.exists() else []
        if sum(said in line and b'"loss"' in line for line in lines) >= step:
            process.kill()
        time.sleep(0.002)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]
    return process.returncode


def finish(words: list[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("algorithm", STEPS)
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(demo_folder: Path, tmp_path: Path, algorithm: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recipe, more = demo_folder / "from-sft.toml", ["--optimizer", algorithm, *options("optimizer", *STEPS[algorithm])]
    finish(command(recipe, whole, *more))
    step = random.randrange(1, 8)
    run_until_step(command(recipe, killed, *more), killed / "metrics.jsonl", step)
    assert not (killed / "policy" / "model.safetensors").exists()
    finish(command(recipe, killed, *more, "--resume"))
    weights = [(folder / "policy" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1], f"killed at step {step}"


@pytest.mark.parametrize("loss", ["pairwise", "infonce", "plackett-luce"])
def test_killed_in_sft_and_in_the_reward_model(demo_folder: Path, tmp_path: Path, loss: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recipe = demo_folder / "recipe.toml"
    more = [
        *options("sft", "minibatch_size=4", "save_every=1"),
        *options("reward", f"loss={loss}", "train.minibatch_size=4", "train.n_epochs=1", "train.save_every=1"),
        *options("optimizer", "iterations=1", "batch_size=6"),
    ]
    finish(command(recipe, whole, *more))
    steps = {stage: random.randrange(1, 5) for stage in ("sft", "reward")}
    run_until_step(command(recipe, killed, *more), killed / "metrics.jsonl", steps["sft"], "sft")
    assert not (killed / "sft" / "model.safetensors").exists()
    run_until_step(command(recipe, killed, *more, "--resume"), killed / "metrics.jsonl", steps["reward"], "reward")
    assert not (killed / "reward" / "model.safetensors").exists()
    finish(command(recipe, killed, *more, "--resume"))
    for stage in ("sft", "reward", "policy"):
        weights = [(folder / stage / "model.safetensors").read_bytes() for folder in (whole, killed)]
        assert weights[0] == weights[1], f"{stage}, killed at steps {steps}"
