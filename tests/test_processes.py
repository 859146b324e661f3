"""Two processes that train together end where one does, and only the first writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_engine import Likelihood, demonstrations, policy_in_float64, same_weights, weights

from alignkit.options import TrainingOptions
from alignkit.testing import near
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

TRAIN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_processes import trained
from alignkit.ops.distributed import process_index, start_processes

start_processes()
torch.save(trained(Path({folder!r}), {max_tokens}), Path({folder!r}) / f"{{process_index()}}.pt")
"""


def trained(folder: Path, max_tokens: int) -> tuple[torch.Tensor, list[float]]:
    """The weights and losses of a few steps."""
    torch.manual_seed(0)
    policy, losses = policy_in_float64(), list[float]()
    options = TrainingOptions(learning_rate=0.01, minibatch_size=16, n_epochs=4, max_tokens=max_tokens)
    train(
        Likelihood(options, policy=policy), OfflineFeed(demonstrations(11), policy), folder=folder, seed=0,
        on_step=lambda record: losses.append(record["loss"]),
    )  # fmt: skip
    return weights(policy), losses


def launch(code: str, processes: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]
    for process in started:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors.decode()[-3000:]


@pytest.mark.parametrize("max_tokens", [pytest.param(100_000, marks=pytest.mark.slow), 40])
def test_two_processes_with_unequal_shares_take_the_steps_of_one(tmp_path: Path, max_tokens: int) -> None:
    """Eleven groups on two processes, six and five, in one or several micro-batches: the gradient is that of all."""
    tests = str(Path(__file__).parent)
    launch(TRAIN.format(tests=tests, folder=str(tmp_path), max_tokens=max_tokens), 2)
    alone, losses = trained(tmp_path / "alone", max_tokens)
    for shared, shared_losses in [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]:
        assert same_weights(shared, alone, steps=4)
        assert shared_losses == near(losses, terms=100)
    assert list((tmp_path / "checkpoints").iterdir())


FOLLOW = """
from pathlib import Path
import torch
from alignkit_dpo.online_dpo import OnlineDPO
from alignkit.training.engine import train
from alignkit.training.feeds import RolloutFeed
from alignkit.interfaces import Context
from alignkit.ops.distributed import process_index, start_processes
from alignkit.options import Sampling
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.testing.runs import PROMPTS

start_processes()
policy, reward = TinyPolicy(context=Context(seed=1)), TinyReward()
options = OnlineDPO.Config(
    learning_rate=0.02, iterations=3, batch_size=4, group_size=16, minibatch_size=2, pairs="all", n_epochs=2,
    reference_refresh_every=1, reference_decay=0.75, reference_max_kl=0.002, kl_controller="adaptive",
)
optimizer, seen = OnlineDPO(options, policy=policy, reward=reward), []
feed = RolloutFeed(PROMPTS, policy, reward, sampling=Sampling(max_tokens=6), options=options, seed=5)
train(optimizer, feed, folder=Path({folder!r}), seed=5, on_step=lambda record: seen.append(
    [record["reference_refreshes"], record["kl"], record["beta"]]
))
weights = torch.cat([p.flatten() for p in optimizer.reference.modules()["policy"].parameters()])
torch.save((weights, seen), Path({folder!r}) / f"{{process_index()}}.pt")
"""


@pytest.mark.slow
def test_the_reference_follows_alike_in_all_processes(tmp_path: Path) -> None:
    launch(FOLLOW.format(folder=str(tmp_path)), 2)
    (one, log), (other, other_log) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one, other)
    assert log == other_log
    assert 0 < log[-1][0] < len(log)
