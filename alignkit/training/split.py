"""Checkpoints to which every process writes its part of weights and moments (torch.distributed.checkpoint).

alignkit does not read them yet.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from alignkit.errors import InputError
from alignkit.ops.distributed import waiting_group
from alignkit.training import checkpoint as checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

PREFIX = "adam."


def is_split(checkpoint: Path) -> bool:
    """Whether a checkpoint has parts of several processes."""
    return (checkpoint / ".metadata").exists()


def save(checkpoint: Path, modules: Mapping[str, nn.Module], moments: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Writes this process's part of the weights and of AdamW's moments, by the number of their parameter."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    named = {f"{PREFIX}{place}.{key}": held for place, own in moments.items() for key, held in own.items()}
    state = {**dict(checkpoints.trained_tensors(modules)), **named}
    with _own_errors():
        save_parts(state, checkpoint_id=checkpoint, process_group=waiting_group())


def refuse(checkpoint: Path) -> None:
    """Raises InputError for a checkpoint with parts: reading one is not proven to be exact."""
    if is_split(checkpoint):
        raise InputError("a checkpoint of split weights can't be resumed yet", where=str(checkpoint), fix="--overwrite")


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raises what a process raised, in all, in place of a BaseException that holds it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as failed:
        raise next(error for error, _ in failed.failures.values()) from failed
