"""What plugins return in training, checked: scores of a reward source, losses of an algorithm."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alignkit.errors import PluginError, StoppedByCheck, blamed
from alignkit.ops.distributed import mean_over_processes, sum_over_processes
from alignkit.ops.memory import until_it_fits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics
    from alignkit.interfaces import RewardSource
    from alignkit.records import Group

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


def checked_scores(reward: RewardSource[Any], groups: Sequence[Group]) -> list[list[float | None]]:
    """The scores of a source: one finite float or None per response.

    Raises:
        PluginError: the source returned anything else; the message names it and the group.
    """
    name = type(reward).__name__

    def computed(size: int) -> list[list[float | None]]:
        parts = [groups[start : start + size] for start in range(0, len(groups), size)]
        return [row for part in parts for row in reward.score(part)]

    with blamed(f"reward {name}", "score() failed"):
        smaller = partial(logger.warning, "out of memory in the reward: now %d prompts at a time")
        scores = until_it_fits(computed, max(1, len(groups)), smaller)
    if len(scores) != len(groups):
        raise PluginError(f"reward {name}: {len(scores)} lists of scores for {len(groups)} groups")
    for number, (row, group) in enumerate(zip(scores, groups, strict=True)):
        if not isinstance(row, list | tuple) or len(row) != len(group.responses):
            found = f"{len(row)} scores" if isinstance(row, list | tuple) else f"{row!r}"
            raise PluginError(f"reward {name}, group {number}: {found} for {len(group.responses)} responses")
        for value in row:
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise PluginError(f"reward {name}, group {number}: {value!r} is not a finite number or None")
    return scores


def score_groups(reward: RewardSource[Any], groups: Sequence[Group]) -> list[Group]:
    """The groups with the source's `scores`."""
    return [
        replace(group, scores=tuple(row), source=type(reward).__name__)
        for group, row in zip(groups, checked_scores(reward, groups), strict=True)
    ]


def score_batch(batch: GroupBatch, reward: RewardSource[Any]) -> GroupBatch:
    """The batch with `rewards` [S]; responses on which the source abstained are dropped.

    Raises:
        StoppedByCheck: the source abstained on every response in every process.
    """
    rows = checked_scores(reward, batch.groups)
    flat = [value for row in rows for value in row]
    kept = torch.tensor([value is not None for value in flat], device=batch.device)
    scored, asked = sum_over_processes(torch.stack([kept.sum(), kept.new_tensor(len(flat), dtype=torch.long)])).tolist()
    if not scored:
        raise StoppedByCheck(f"reward {type(reward).__name__} abstained on all {asked} responses")
    rewards = torch.tensor([value or 0.0 for value in flat], dtype=torch.float32, device=batch.device)
    batch = batch.replace(rewards=rewards)
    return batch if bool(kept.all()) else batch.select_responses(kept)


def check_abstentions(share: float, limit: float) -> None:
    """Raises StoppedByCheck if a reward abstained on more than `limit` of the responses."""
    if share > limit:
        raise StoppedByCheck(
            f"the reward abstained on {share:.0%} of the responses\n"
            "  fix: look at what it can't score, or raise optimizer.max_abstained"
        )


def shared_figures(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean over processes of each figure."""
    names = sorted(figures)
    means = mean_over_processes(torch.tensor([figures[name] for name in names], device=device))
    return dict(zip(names, means.tolist(), strict=True))


def attributed(method: Callable[..., ResultT], batch: GroupBatch) -> ResultT:
    """What a bound method returns for a batch; its errors name its object's class and the method."""
    with blamed(_owner(method), f"{method.__name__}() failed"):
        return method(batch)


def checked_loss(compute: Callable[..., Any], batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
    """What an algorithm's `loss` returns for a batch.

    Raises:
        PluginError: it raised, or returned something else than a scalar tensor and a mapping of figures.
    """
    match attributed(compute, batch):
        case (torch.Tensor() as loss, dict() as metrics) if loss.ndim == 0:
            return loss, metrics
        case (torch.Tensor() as loss, _):
            found = f"a loss of shape {list(loss.shape)}" if loss.ndim else "no mapping of figures"
        case other:
            found = type(other).__name__
    raise PluginError(f"{_owner(compute)}: loss() must return a scalar tensor and a mapping of figures, found {found}")


def _owner(method: Callable[..., Any]) -> str:
    return f"optimizer {type(getattr(method, '__self__', method)).__name__}"
