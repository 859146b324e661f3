"""What finished runs measured along training: a row per batch of rollouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import groupby
from math import inf
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit import Feed, Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.commands import Resolved

    Row = dict[str, float]

GOLD = "gold"
"""The entry of [eval.rewards] that over-optimisation is judged by."""
GOLD_ALARM = "alarm_gold"
BATCHES = 5
"""Batches of a point along training: of single ones, chance would choose the best."""
FIGURES = {"kl": "kl", "reward": "reward", "gold": "gold_reward"}
"""Key of a row -> figure in metrics.jsonl."""


@dataclass(frozen=True)
class Course:
    """A run from its start to its end.

    Attributes:
        rows: of each batch of rollouts `step`, the optimisation steps before it, `kl`, to the start in nats per reply,
            `reward` and `gold`, means over the batch; without those that the run did not measure.
        start, end: `kl`, `reward` and `gold` of the evaluation, before and after.
        steps: in all.
        alarm: the `step` of the row that gave the first alarm on gold; None without one.
    """

    seed: int
    rows: Sequence[Row]
    start: Row
    end: Row
    steps: int
    alarm: int | None = None

    @classmethod
    def read(cls, folder: Path, seed: int) -> Course:
        """Reads a run directory, evaluated or not."""
        run = Run.open(folder)
        said = run.stages.get("eval", {})
        rows = rows_of([record for record in run.metrics if record["stage"] == "policy"])
        start, end = (_measured(said.get(name, {})) for name in ("start", "policy"))
        # An alarm names the step that comes next.
        alarms = [
            alarm["step"] - 1 for alarm in run.alarms if (alarm["stage"], alarm["alarm"]) == ("policy", GOLD_ALARM)
        ]
        return cls(seed, rows, start, end, run.stages.get("align", {}).get("steps", 0), min(alarms, default=None))


def rows_of(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for all the steps on a batch; its figures are the batch's, from before the first of them."""
    found = []
    for figures, steps in groupby(records, lambda record: {k: record[f] for k, f in FIGURES.items() if f in record}):
        if "kl" in figures:
            found.append({"step": next(steps)["step"] - 1, **figures})
    return found


def _measured(said: Mapping[str, Any]) -> Row:
    return {name: said[name]["value"] for name in FIGURES if name in said}


def means_of(rows: Sequence[Row], batches: int) -> list[Row]:
    """Means over every so many consecutive batches, at the step of the last one; what is left over counts as one."""
    return [
        {**{name: sum(row[name] for row in part) / len(part) for name in part[-1]}, "step": part[-1]["step"]}
        for part in (rows[place : place + batches] for place in range(0, len(rows), batches))
    ]


def lost_by_alarm(run: Course) -> float | None:
    """The share of gold's gain that a run had lost when gold's alarm was given; None without an alarm or a gain.

    The gain is the best mean of five batches in a row, less the first batch; what was left is the mean of the alarm's
    batch and its two neighbours.
    """
    rows = [row for row in run.rows if GOLD in row]
    golds = [row[GOLD] for row in rows]
    place = next((place for place, row in enumerate(rows) if row["step"] == run.alarm), None)
    best = max((fmean(golds[end - BATCHES : end]) for end in range(BATCHES, len(golds) + 1)), default=-inf)
    if place is None or best <= golds[0]:
        return None
    return round((best - fmean(golds[place - 1 : place + 2])) / (best - golds[0]), 4)


def tracking(resolved: Resolved) -> tuple[str, ...]:
    """The `-o` that let a recipe's algorithm measure gold and the KL along training, where it can and does not yet.

    They change no weight. Scoring rollouts with gold costs no sampling.
    """
    if resolved.load("optimizer").consumes is not Feed.ROLLOUTS:
        return ()
    options = resolved.config("optimizer")
    known = {field.name for field in fields(options)}
    found = []
    if GOLD in resolved.eval.rewards and "stop" in known and options.stop.gold is None:
        found.append(f"optimizer.stop.gold={as_toml(resolved.eval.rewards[GOLD])}")
    if "track_kl" in known and not options.needs_reference:
        found.append("optimizer.track_kl=true")
    return tuple(found)


def as_toml(value: Any) -> str:
    """A value of a recipe as TOML on one line, as `-o` takes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
