"""What the processes of a run share; free with a single process."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from alignkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

T = TypeVar("T")


def start_processes() -> None:
    """Joins the other processes if `torchrun` or `accelerate launch` started several.

    Raises:
        InputError: several were asked for, but only this one was started.
    """
    _check_started(os.environ)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        waiting_group()  # now, because it takes all processes, and nothing limits the wait for one that has ended


def _check_started(environment: Mapping[str, str]) -> None:
    """Refuses `accelerate launch --cpu --num_processes N`, which starts a single process and says nothing."""
    asked = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    if asked and not {"RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & environment.keys():
        raise InputError(
            "accelerate was asked for several processes and started one, as it does without GPUs",
            where="accelerate launch",
            fix="start alignkit itself, with --launch torchrun --processes N",
        )


def num_processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def are_split(modules: Mapping[str, nn.Module]) -> bool:
    """Whether the weights of one of the modules are split over the processes (FSDP2).

    Known by a method that only FSDP2's modules have, because importing their class takes a second.
    """
    return any(hasattr(module, "unshard") for module in modules.values())


def own_block(count: int) -> range:
    """This process's share of `count` things in a row. The blocks differ by at most one; the first is a longest one."""
    first, number = process_index(), num_processes()
    return range(-(-count * first // number), -(-count * (first + 1) // number))


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


def from_all_processes(x: T) -> list[T]:
    """Every process's `x`, which must be picklable, in the order of the processes."""
    found: list[T] = [x] * num_processes()
    if num_processes() > 1:
        dist.all_gather_object(found, x, group=waiting_group())
    return found


def barrier() -> None:
    """Waits for all processes, however long they take."""
    if num_processes() > 1:
        dist.barrier(group=waiting_group())


def waiting_group(use: str = "") -> dist.ProcessGroup:
    """A group of all processes whose waiting has no limit: one may write a model for hours. It notices at once if one
    ends. The first call for a use is a common one; threads that communicate at a time need a use each."""
    return _waiting_group(dist.group.WORLD, use)


@cache
def _waiting_group(_: dist.ProcessGroup | None, __: str) -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    return group
