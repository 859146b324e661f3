"""Checkpoints to which every process writes its part of weights and moments (torch.distributed.checkpoint).

Any number of processes can read them, also a single one with whole weights.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from alignkit.ops.distributed import from_all_processes, num_processes, waiting_group
from alignkit.training import checkpoint as checkpoints
from alignkit.training.memory import free_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

PREFIX = "adam."
COPIES = 2
"""The free memory in which a process copies its part, in such parts."""


def is_split(checkpoint: Path) -> bool:
    """Whether a checkpoint has parts of several processes."""
    return (checkpoint / ".metadata").exists()


def save(
    checkpoint: Path, modules: Mapping[str, nn.Module], moments: Mapping[int, Mapping[str, Tensor]]
) -> Callable[[], None]:
    """Writes this process's part of the weights and of AdamW's moments, by the number of their parameter.

    Where every process has room for a copy of its part, that is written while the caller goes on.

    Returns:
        what waits until all processes have written, and raises what one of them raised.
    """
    from torch.distributed.checkpoint.state_dict_saver import async_save
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    named = {f"{PREFIX}{place}.{key}": held for place, own in moments.items() for key, held in own.items()}
    state = {**dict(checkpoints.trained_tensors(modules)), **named}
    size = sum(local_part(held).nbytes for held in state.values())
    if all(from_all_processes(COPIES * size <= (free_bytes(torch.device("cpu")) or 0))):
        written = async_save(state, checkpoint_id=checkpoint, process_group=waiting_group("saving"))
        assert isinstance(written, Future)
        return lambda: _result_of(written)
    with _own_errors():
        save_parts(state, checkpoint_id=checkpoint, process_group=waiting_group())
    return lambda: None


def _result_of(written: Future[Any]) -> None:
    with _own_errors():
        written.result()


def load_modules(checkpoint: Path, modules: Mapping[str, nn.Module]) -> None:
    """Loads weights, whole or split."""
    _load(checkpoint, {name: tensor.detach() for name, tensor in checkpoints.trained_tensors(modules)})


def load_adam(checkpoint: Path, adam: Any) -> dict[str, Any]:
    """AdamW's state, for the parameters of `adam`, whole or split."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name in FileSystemReader(checkpoint).read_metadata().state_dict_metadata:
        if name.startswith(PREFIX):
            place, key = name.removeprefix(PREFIX).split(".")
            like = torch.zeros(()) if key == "step" else torch.zeros_like(parameters[int(place)])
            moments.setdefault(int(place), {})[key] = like
    _load(checkpoint, {f"{PREFIX}{place}.{key}": held for place, own in moments.items() for key, held in own.items()})
    return {"state": moments, "param_groups": checkpoints.load_tensors(checkpoint, "adam_groups")}


def _load(checkpoint: Path, into: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    group = waiting_group() if num_processes() > 1 else None
    with _own_errors():
        load(into, checkpoint_id=checkpoint, process_group=group, no_dist=group is None)


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be split."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raises what a process raised, in all, in place of a BaseException that holds it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as failed:
        raise next(error for error, _ in failed.failures.values()) from failed
