"""The same number of prompts for every algorithm."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from alignkit import Feed, InputError, read_groups, write_groups
from alignkit.commands import split_by_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.commands import Resolved


@dataclass(frozen=True)
class Spending:
    """How a run spends its budget.

    Attributes:
        prompts: that it learns from, counted as often as it does.
        overrides: `-o` options that make it so.
        groups: of its training data, if not all of them.
    """

    prompts: int
    overrides: tuple[str, ...] = ()
    groups: int | None = None


def budget_of(text: str) -> int | None:
    """`prompts=20000` as a number; None for no budget.

    Raises:
        InputError: it is anything else.
    """
    unit, _, amount = text.partition("=")
    if not text:
        return None
    if unit != "prompts" or not amount.isdigit() or not int(amount):
        raise InputError("is not prompts=N", where=f"--budget {text}", fix="write --budget prompts=20000")
    return int(amount)


def spending(resolved: Resolved, budget: int | None, run: Path | None) -> Spending:
    """How the recipe's algorithm spends `budget` prompts; what the recipe says without one.

    Args:
        run: a run directory with the preferences, if there are any yet.

    Raises:
        InputError: the algorithm has no option for it, or its preferences are not known before it runs.
    """
    options: Any = resolved.config("optimizer")
    name = resolved.names["optimizer"]
    online = resolved.load("optimizer").consumes is Feed.ROLLOUTS
    key = "iterations" if online else "n_epochs"
    if key not in {field.name for field in fields(options)} and budget is not None:
        raise InputError(f"{name} has no option {key} to keep it with", where="--budget", fix="leave it out")
    if not online and run is None and budget is not None:
        raise InputError(f"{name} samples its preferences in rounds", where="--budget", fix="leave it out")
    if online:
        once = options.batch_size
    else:
        once = _training_count(run / "preferences.jsonl", resolved.run.holdout) if run else 0
    if budget is None:
        return Spending(once * getattr(options, key, 1))
    times = max(1, round(budget / once))
    if not online and budget < once:
        return Spending(budget, (f"optimizer.{key}=1",), budget)
    return Spending(once * times, (f"optimizer.{key}={times}",))


def keep_groups(resolved: Resolved, run: Path, count: int) -> None:
    """Drops training preferences after the first `count`; held-out ones stay."""
    file = run / "preferences.jsonl"
    trained, held_out = split_by_prompt(list(read_groups(file)), resolved.run.holdout)
    write_groups(file, [*trained[:count], *held_out])


@cache
def _training_count(preferences: Path, holdout: float) -> int:
    """How many of the preferences are trained on; all cells that share them ask."""
    return len(split_by_prompt(list(read_groups(preferences)), holdout)[0])
