"""What one process does for all, what all of them have together, and which of them tells of a failure."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist

from alignkit.batch import GroupBatch
from alignkit.errors import AlignkitError, StoppedByCheck, describe_error
from alignkit.ops.distributed import from_all_processes, num_processes, process_index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

LOST = ("gloo", "NCCL", "by peer")
"""Words in the messages of torch.distributed when another process has ended."""


def in_first(act: Callable[[], T]) -> T:
    """What `act` returns in the first process, which must be picklable; the others wait, however long it takes.

    Raises:
        AlignkitError: what the first process raises, in all.
    """
    if num_processes() == 1:
        return act()
    outcome: tuple[T | None, AlignkitError | None] = None, None
    if process_index() == 0:
        try:
            outcome = act(), None
        except Exception as error:
            from_all_processes((None, error if isinstance(error, AlignkitError) else _plain(error)))
            raise
    result, failure = from_all_processes(outcome)[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def shared_failure(error: BaseException | None) -> None:
    """Raises in all processes what one of them has to tell; its own in each that has one."""
    found = from_all_processes(error if error is None or isinstance(error, AlignkitError) else _plain(error))
    if failure := error or next(filter(None, found), None):
        raise failure


def _plain(error: BaseException) -> AlignkitError:
    return AlignkitError(describe_error(error))


def gathered(batch: GroupBatch) -> GroupBatch:
    """The batches of all processes as one, in the order of the processes."""
    if num_processes() == 1:
        return batch
    parts = from_all_processes(batch.to("cpu"))
    return GroupBatch.concat(parts).to(batch.device)


def evenly(batch: GroupBatch) -> GroupBatch:
    """This process's share of all processes' groups: some in a row, with about as many tokens as any other's.

    Raises:
        StoppedByCheck: there are fewer groups than processes.
    """
    if num_processes() == 1:
        return batch
    whole = gathered(batch)
    if whole.num_groups < num_processes():
        raise StoppedByCheck(f"only {whole.num_groups} prompts have scores, for {num_processes()} processes")
    return whole.select(runs_of_equal_cost(whole.costs, num_processes())[process_index()])


def runs_of_equal_cost(costs: Sequence[int], count: int) -> list[range]:
    """`count` runs of things, none empty, that each cost about the same; there are at least as many things."""
    upto = [0, *accumulate(costs)]
    ends = [0]
    for number in range(1, count):
        possible = range(ends[-1] + 1, len(costs) - count + number + 1)
        ends.append(min(possible, key=lambda end: abs(upto[end] - upto[-1] * number / count)))
    return [range(*pair) for pair in pairwise([*ends, len(costs)])]


def failure_to_show(error: AlignkitError, cause: BaseException) -> AlignkitError | None:
    """What this process tells of its failure. Only the first to fail tells: the others have the same error, or one that
    follows from it."""
    if num_processes() == 1:
        return error
    if not _is_first_failure():
        return None
    name = f"process {process_index()}"
    chain: list[BaseException] = [cause]
    while (behind := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(behind)
    if any(isinstance(link, RuntimeError) and any(word in str(link) for word in LOST) for link in chain):
        return AlignkitError(
            f"{name} lost the connection: another one ended without a message, as when it is killed or memory runs out"
            "\n  fix: continue with --resume"
        )
    return error if process_index() == 0 else AlignkitError(f"{name}: {error}")


def _is_first_failure() -> bool:
    try:
        return bool(dist.distributed_c10d._get_default_store().add("alignkit/failures", 1) == 1)
    except RuntimeError:  # the process that holds the store has ended
        return True
