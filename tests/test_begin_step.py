"""An Optimizer is told of each step before its micro-batches, and its means are those of all processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from alignkit.interfaces import Feed, Optimizer
from alignkit.ops.distributed import mean_over_processes
from alignkit.options import TrainingOptions
from alignkit.records import Group, Prompt
from alignkit.testing import TinyPolicy
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

if TYPE_CHECKING:
    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics


class TellsItsSteps(Optimizer[TrainingOptions]):
    """Keeps what it hears in `told`; its loss needs to have been told."""

    consumes = Feed.DEMONSTRATIONS

    def __init__(self, policy: TinyPolicy, **options: int) -> None:
        super().__init__(TrainingOptions(learning_rate=0.01, **options), policy=policy)
        self.told: list[tuple[float, float]] = []
        self.losses_in_step = 0
        self.gradient_allowed = False

    def begin_step(self, batch: GroupBatch) -> None:
        self.gradient_allowed |= torch.is_grad_enabled()
        one = batch.group_mean(torch.ones(batch.num_groups))
        length = batch.response_mean(batch.lengths.float())
        self.told.append((float(mean_over_processes(one)), float(mean_over_processes(length))))
        self.losses_in_step = 0

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        self.losses_in_step += 1
        return -batch.token_mean(self.policy.forward(batch).logprobs), {}


def demonstrations(count: int) -> list[Group]:
    return [Group(Prompt(text="say it"), ("a" * (1 + number),)) for number in range(count)]


def told_in(folder: Path, **options: int) -> TellsItsSteps:
    policy = TinyPolicy()
    optimizer = TellsItsSteps(policy, **options)
    train(optimizer, OfflineFeed(demonstrations(11), policy), folder=folder, seed=0)
    return optimizer


def test_once_a_step_with_the_whole_minibatch_and_no_gradient(tmp_path: Path) -> None:
    optimizer = told_in(tmp_path, minibatch_size=16, n_epochs=3, max_tokens=20)
    # Eleven responses of 1 to 11 letters and their stop tokens: 7 tokens in the mean.
    assert optimizer.told == [(1.0, 7.0)] * 3
    assert optimizer.losses_in_step > 1
    assert not optimizer.gradient_allowed


PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_begin_step import told_in
from alignkit.ops.distributed import process_index, start_processes

start_processes()
torch.save(told_in(Path({folder!r}), minibatch_size=2).told, Path({folder!r}) / f"{{process_index()}}.pt")
"""


@pytest.mark.slow
def test_a_process_that_has_run_out_does_not_count(tmp_path: Path) -> None:
    """Eleven groups on two processes, one group a step each: in the sixth step the second process has none."""
    from test_processes import launch

    launch(PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert [one for one, _ in first] == [1.0] * 6
    lengths = [length for _, length in first]
    # Two responses a step, then the last one alone.
    assert 2 * sum(lengths[:5]) + lengths[5] == 77.0
