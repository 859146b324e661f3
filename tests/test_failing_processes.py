"""What happens to one process ends all: soon, with one message, and such that the run can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from alignkit.cli.launch import exit_code_of

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPE = """
[policy]
model = "llama"
[prompts]
path = "prompts.jsonl"
[reward]
plugin = "function"
function = "failing_reward:letters"
[optimizer]
plugin = "ppo"
iterations = 4
batch_size = 4
minibatch_size = 2
n_epochs = 1
learning_rate = 1e-4
save_every = 1
keep_checkpoints = 20
[sampling]
max_tokens = 8
[run]
holdout = 0.0
"""
LIMIT = 60
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe for PPO in 8 steps."""
    from alignkit.testing.tiny_hf import write_tiny_llama

    folder = tmp_path_factory.mktemp("work")
    write_tiny_llama(folder / "llama")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "say {word}"}}\n' for word in "abcdefgh"))
    return folder


def run(
    work: Path, out: str, *words: str, launcher: tuple[str, ...] = (), fail: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Aligns the policy in processes on this machine; the exit code and what stderr got."""
    known = {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    known |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *launcher, "-m", "alignkit", "align", "recipe.toml", "--out", out, *words]
    done = subprocess.run(
        command,
        check=False,
        cwd=work,
        env={**os.environ, **known, **(fail or {})},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stderr


def at(call: int, rank: int, how: str) -> dict[str, str]:
    return {"FAIL": how, "FAIL_RANK": str(rank), "FAIL_CALL": str(call)}


def weights(work: Path, out: str) -> torch.Tensor:
    tensors = load_file(work / out / "policy" / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


TWO = ("--launch", "torchrun", "--processes", "2")


@pytest.fixture(scope="module")
def whole(work: Path) -> torch.Tensor:
    """The weights that one undisturbed process ends with."""
    code, said = run(work, "whole", "--quiet")
    assert code == 0, said
    return weights(work, "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "rank", "code", "message"),
    [
        ("kill", 1, 137, "lost the connection"),
        ("kill", 0, 137, "lost the connection"),
        ("raise", 1, 1, "process 1: "),
        ("raise", 0, 1, "out of cheese"),
        ("full disk", 0, 1, "the disk is full"),
        ("stop", 1, 143, "stopped by SIGTERM after step"),
        ("stop", 0, 143, "stopped by SIGTERM after step"),
        ("stop all", 1, 143, "stopped by SIGTERM after step"),
    ],
)
@pytest.mark.parametrize("shard", ["none", "fsdp2"])
def test_one_process_ends_all(
    work: Path, whole: torch.Tensor, tmp_path: Path, how: str, rank: int, code: int, message: str, shard: str
) -> None:
    out, began = str(tmp_path / "run"), tmp_path / "began"
    split = ("-o", f"run.shard={shard}")
    found, said = run(work, out, *TWO, *split, fail={**at(3, rank, how), "FAIL_BEGAN": str(began)})
    assert time.time() - began.stat().st_mtime < LIMIT
    assert found == code, said
    assert len(errors(said)) == 1, said
    assert message in said
    # The third call is for the third batch: two batches of two steps are done. Of split weights the last checkpoint is
    # written while the run goes on, so SIGKILL may cost it.
    last = 3 if (how, shard) == ("kill", "fsdp2") else 4
    assert (tmp_path / "run" / "policy" / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()
    if rank == 1 or how == "full disk":
        found, said = run(work, out, "--resume", *split)
        assert found == 0, said
        assert float((weights(work, out) - whole).abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "alignkit"])
def test_both_ways_to_start(work: Path, whole: torch.Tensor, tmp_path: Path, launcher: str) -> None:
    out = str(tmp_path / "run")
    started = run(work, out, launcher=TORCHRUN) if launcher == "torchrun" else run(work, out, *TWO)
    assert started[0] == 0, started[1]
    assert started[1].count("== align") == 1, "only the first process reports"
    assert float((weights(work, out) - whole).abs().max()) < 1e-5


@pytest.mark.slow
def test_two_nodes(work: Path, whole: torch.Tensor, tmp_path: Path) -> None:
    """Two nodes of two processes each, on this machine."""
    out = str(tmp_path / "run")
    words = [sys.executable, "-m", "alignkit", "align", "recipe.toml", "--out", out, "--launch", "torchrun"]
    words += ["--processes", "2", "--nodes", "2", "--rendezvous", "127.0.0.1:29671"]
    known = {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    known |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [subprocess.Popen(words, cwd=work, env={**os.environ, **known}) for _ in range(2)]
    assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    assert float((weights(work, out) - whole).abs().max()) < 1e-5


@pytest.mark.slow
def test_wrong_input_ends_all_with_one_message(work: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    code, said = run(work, str(tmp_path / "run"), *TWO)
    assert code == 2
    assert len(errors(said)) == 1, said
    assert "is not empty" in said


@pytest.mark.slow
def test_accelerate_that_starts_one_process_is_refused(work: Path, tmp_path: Path) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    code, said = run(work, str(tmp_path / "run"), launcher=launcher)
    assert code != 0
    assert "accelerate was asked for several processes and started one" in said
    assert not (tmp_path / "run").exists()


def test_the_exit_code_is_that_of_the_process_that_failed_first() -> None:
    assert exit_code_of([1, 3]) == 3
    assert exit_code_of([-signal.SIGKILL, 1]) == 137
    assert exit_code_of([-signal.SIGKILL, -signal.SIGTERM]) == 137
    assert exit_code_of([1, -signal.SIGTERM]) == 1
    assert exit_code_of([1, 1]) == 1
    assert exit_code_of([143, 143]) == 143
