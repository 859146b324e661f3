"""Sums over processes; free with a single process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor


def start_processes() -> None:
    """Joins the other processes if `accelerate launch` or `torchrun` started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def num_processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, which must pass the same shape; `x` itself with one process."""
    if num_processes() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of `x` over all processes, which must pass the same shape; `x` itself with one process."""
    return sum_over_processes(x) / num_processes()


def barrier() -> None:
    """Waits for all processes."""
    if num_processes() > 1:
        dist.barrier()
