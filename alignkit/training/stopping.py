"""Ends an online run early: the reward has stopped rising, or a gold reward falls while the learned one rises.

The second is over-optimisation as measured by Gao et al., arXiv:2210.10760, with a gold source that is not optimised.
Deliberately different: they judge the finished curve; here the rule applies to moving means during training. All
processes see the same figures, so they decide alike.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from alignkit.companions import Companion
from alignkit.ops.distributed import sum_over_processes
from alignkit.training.scores import checked_scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.components import Context
    from alignkit.interfaces import RewardSource
    from alignkit.options import StopOptions

GOLD = "gold_reward"


def has_plateaued(rewards: Sequence[float], batches: int, delta: float) -> bool:
    """Whether the mean of the last `batches` rewards is at most `delta` above the mean of as many before them."""
    if not batches or len(rewards) < 2 * batches:
        return False
    return fmean(rewards[-batches:]) - fmean(rewards[-2 * batches : -batches]) <= delta


def moving_means(values: Sequence[float], window: int) -> list[float]:
    """The means of every `window` consecutive values: len(values) - window + 1 of them."""
    return [fmean(values[end - window : end]) for end in range(window, len(values) + 1)]


def best_of(means: Sequence[float]) -> int:
    """The index of the first highest mean. Raises ValueError if there are no means."""
    return max(range(len(means)), key=means.__getitem__)


def fall_of_gold(gold: Sequence[float], rewards: Sequence[float], window: int) -> float:
    """How far gold's moving mean is below its best, if the rewards' has risen since then; else 0.

    Args:
        gold, rewards: one mean per batch, in order.
    """
    golds, learned = moving_means(gold, window), moving_means(rewards, window)
    best = best_of(golds) if golds else -1
    return golds[best] - golds[-1] if golds and learned[-1] > learned[best] else 0.0


def error_of_difference(values: Sequence[float], window: int) -> float:
    """Standard error of the difference of two means of `window` values, from neighbours' squared differences, which a
    slow trend hardly changes (von Neumann et al. 1941); 0 for fewer than two values."""
    squares = [(after - before) ** 2 for before, after in pairwise(values)]
    return math.sqrt(fmean(squares) / window) if squares else 0.0


class RolloutWatch(Companion):
    """Watches the rewards of an online run, batch by batch.

    Attributes:
        best_step: optimisation steps done when gold's moving mean was best; None until known.
    """

    name = "watch"

    def __init__(self, options: StopOptions, context: Context) -> None:
        self._options = options
        spec = options.gold
        self._gold: RewardSource[Any] | None = None if spec is None else context.build("reward", spec)  # type: ignore[assignment]
        self._rewards: list[float] = []
        self._golds: list[tuple[float, float]] = []
        self.best_step: int | None = None

    def observe(self, batch: GroupBatch, step: int) -> dict[str, float]:
        """Adds the batch's rewards and gold's. Returns `gold_reward` and `gold_drop`, in standard errors, if there is a
        gold reward."""
        if batch.rewards is None:
            return {}
        figures: dict[str, float] = {}
        reward = _shared_mean(batch.rewards.tolist(), batch.device)
        self._rewards.append(reward)
        self._check_plateau()
        if self._gold is not None:
            rows = checked_scores(self._gold, batch.groups)
            gold = _shared_mean([value for row in rows for value in row if value is not None], batch.device)
            if not math.isnan(gold):
                self._golds.append((gold, reward))
                figures = {GOLD: gold, "gold_drop": self._check_gold(step)}
        return figures

    def _check_plateau(self) -> None:
        options = self._options
        if has_plateaued(self._rewards, options.plateau, options.plateau_delta):
            last = fmean(self._rewards[-options.plateau :])
            self.reason = (
                f"the reward has reached a plateau: its mean over the last {options.plateau} batches, {last:.4g}, is "
                f"at most {options.plateau_delta:g} above the mean of the {options.plateau} before"
            )

    def _check_gold(self, step: int) -> float:
        """Applies the rule on gold. Returns gold's fall below its best, in standard errors."""
        options, (gold, rewards) = self._options, zip(*self._golds, strict=True)
        means = moving_means(gold, options.gold_window)
        if means and best_of(means) == len(means) - 1:
            self.best_step = step
        fall = fall_of_gold(gold, rewards, options.gold_window)
        if 0 < options.gold_fall < fall:
            self.ends_at_best = True
            self.reason = (
                f"over-optimised: the gold reward's moving mean fell from {max(means):.4g} to {means[-1]:.4g} "
                f"while the reward rose; the best weights, after step {self.best_step}, are kept"
            )
        return fall / (error_of_difference(gold, options.gold_window) or 1.0)

    def is_best(self, step: int) -> bool:
        """Whether gold's moving mean is at its best."""
        return self.best_step == step

    def state_dict(self) -> dict[str, Any]:
        return {
            "rewards": self._rewards,
            "golds": self._golds,
            "reason": self.reason,
            "best_step": self.best_step,
            "ends_at_best": self.ends_at_best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rewards = list(state["rewards"])
        self._golds = [(gold, reward) for gold, reward in state["golds"]]
        self.reason, self.best_step, self.ends_at_best = state["reason"], state["best_step"], state["ends_at_best"]


def _shared_mean(values: Sequence[float], device: torch.device) -> float:
    """The mean over all processes; NaN if there are no values."""
    total, count = sum_over_processes(torch.tensor([sum(values), len(values)], device=device)).tolist()
    return total / count if count else math.nan
