"""Whether the weights of a training are whole in every process or split over all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.ops.distributed import num_processes
from alignkit.training.replicas import Replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alignkit.companions import Companion
    from alignkit.interfaces import Optimizer


def layout_of(
    optimizer: Optimizer[Any], companions: Sequence[Companion], *, shard: bool, on_notice: Callable[[str], None]
) -> Replicas:
    """Where the weights of a training are; a single process has them whole in any case."""
    if shard and num_processes() == 1:
        on_notice("run.shard splits nothing in a single process: start several with --launch torchrun --processes N")
    if not shard or num_processes() == 1:
        return Replicas(optimizer)
    from alignkit.training.shards import Shards, check_shardable

    check_shardable(optimizer, companions)
    return Shards(optimizer)
