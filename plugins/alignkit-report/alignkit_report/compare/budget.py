"""The same budget for every algorithm: prompts, response tokens, seconds or FLOPs."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING

from alignkit import Feed, ForeignTrainer, InputError, read_groups, write_groups
from alignkit.commands import split_by_prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.commands import Resolved

PROMPTS = "prompts"
UNITS = (PROMPTS, "response_tokens", "seconds", "flops")
WHOLE = (PROMPTS, "response_tokens")
MANY = 1_000_000
"""Iterations or epochs of a run that its budget ends."""


@dataclass(frozen=True)
class Budget:
    """What each run may spend.

    Attributes:
        text: as on the command line: `prompts=20000`.
    """

    unit: str
    amount: float

    @classmethod
    def of(cls, text: str) -> Budget | None:
        """`prompts=20000` or `flops=1e15`; None for no budget.

        Raises:
            InputError: it is anything else.
        """
        if not text:
            return None
        unit, _, amount = text.partition("=")
        try:
            found = cls(unit, float(amount))
        except ValueError:
            found = cls("", 0.0)
        if found.unit not in UNITS or not 0 < found.amount < float("inf") or (unit in WHOLE and found.amount % 1):
            what = f"is not {', '.join(UNITS[:-1])} or {UNITS[-1]}, '=' and a number above 0"
            raise InputError(what, where=f"--budget {text}", fix="write --budget prompts=20000")
        return found

    @property
    def text(self) -> str:
        short = f"{self.amount:g}"
        return f"{self.unit}={short if float(short) == self.amount else self.number}"

    @property
    def number(self) -> str:
        return str(int(self.amount)) if self.unit in WHOLE else repr(self.amount)


@dataclass(frozen=True)
class Spending:
    """How a run spends its budget.

    Attributes:
        prompts: that it is to learn from, counted as often as it does; 0 if other units end it.
        overrides: `-o` options that make it so.
        groups: of its training data, if not all of them.
    """

    prompts: int = 0
    overrides: tuple[str, ...] = ()
    groups: int | None = None


def check_budget(resolved: Resolved, budget: Budget | None) -> None:
    """Raises InputError if the recipe's algorithm can't be held to the budget."""
    if budget is None:
        return
    name, algorithm = resolved.names["optimizer"], resolved.load("optimizer")
    key = _key(resolved)
    fix = "leave it out"
    if resolved.run.rounds > 1 or (algorithm.consumes is not Feed.ROLLOUTS and "preferences" not in resolved.names):
        raise InputError(f"{name} samples its preferences in rounds, and each trains anew", where="--budget", fix=fix)
    if key not in {field.name for field in fields(resolved.config("optimizer"))}:
        raise InputError(f"{name} has no option {key} to keep it with", where="--budget", fix=fix)
    if budget.unit == PROMPTS:
        return
    if issubclass(algorithm, ForeignTrainer):
        what = f"{name} has a loop of its own, which no budget of {budget.unit} ends"
        raise InputError(what, where="--budget", fix="use --budget prompts=N")
    policy = resolved.load("policy")
    if budget.unit == "flops" and not policy.counts_flops:
        what = f"the policy {resolved.names['policy']} doesn't count its FLOPs"
        raise InputError(what, where="--budget", fix="use another unit")


def spending(resolved: Resolved, budget: Budget | None, run: Path | None) -> Spending:
    """How the recipe's algorithm spends a budget that `check_budget` allows; what the recipe says without one.

    Args:
        run: a run directory with the preferences, if the algorithm learns from any.
    """
    key, options = _key(resolved), resolved.config("optimizer")
    if budget is not None and budget.unit != PROMPTS:
        return Spending(overrides=(f"optimizer.{key}={MANY}", f"optimizer.budget.{budget.unit}={budget.number}"))
    if key == "iterations":
        once = options.batch_size
    else:
        once = _training_count(run / "preferences.jsonl", resolved.run.holdout) if run else 0
    if budget is None:
        return Spending(once * getattr(options, key, 1))
    amount = int(budget.amount)
    if key != "iterations" and amount < once:
        return Spending(amount, (f"optimizer.{key}=1",), amount)
    times = max(1, round(amount / once))
    return Spending(once * times, (f"optimizer.{key}={times}",))


def keep_groups(resolved: Resolved, run: Path, count: int) -> None:
    """Drops training preferences after the first `count`; held-out ones stay."""
    file = run / "preferences.jsonl"
    trained, held_out = split_by_prompt(list(read_groups(file)), resolved.run.holdout)
    write_groups(file, [*trained[:count], *held_out])


def spent_in(run: Path, planned: Spending) -> dict[str, float]:
    """What the alignment of a finished run has spent, by unit; of an algorithm with a loop of its own what is known."""
    align = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["align"]
    return dict(align.get("spent") or {PROMPTS: planned.prompts, "seconds": align["seconds"]})


def mean_spent(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of what each run of a variant has spent, by unit."""
    return {unit: round(fmean(run[unit] for run in runs), 1) for unit in UNITS if all(unit in run for run in runs)}


def _key(resolved: Resolved) -> str:
    """The option that says how long the recipe's algorithm learns."""
    return "iterations" if resolved.load("optimizer").consumes is Feed.ROLLOUTS else "n_epochs"


@cache
def _training_count(preferences: Path, holdout: float) -> int:
    """How many of the preferences are trained on; all cells that share them ask."""
    return len(split_by_prompt(list(read_groups(preferences)), holdout)[0])
