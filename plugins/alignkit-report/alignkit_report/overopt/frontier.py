"""What nothing else beats: gold against KL, and win rate against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit_report.overopt.curves import BATCHES, means_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit_report.overopt.curves import Course

COSTS = {"seconds": "seconds", "tokens": "tokens", "memory": "MiB"}
"""Figure of a variant -> its unit."""


def optimal(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Whether no other point has at least the value for at most the cost, and is better in one of them.

    Equal points don't beat each other.
    """
    cost, value = np.array(costs, dtype=np.float64), np.array(values, dtype=np.float64)
    no_worse = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    beaten: list[bool] = np.any(no_worse & better, axis=0).tolist()
    return [not one for one in beaten]


def frontier(courses: Mapping[str, Sequence[Course]], value: str) -> list[dict[str, Any]]:
    """Every run's evaluation, and the means of every five batches along training, by their KL.

    Args:
        value: `gold` or `reward`; points without it are left out.
    """
    found: list[dict[str, Any]] = []
    for variant, runs in courses.items():
        for run in runs:
            for row in [*means_of(run.rows, BATCHES), {**run.end, "step": run.steps}]:
                if "kl" in row and value in row:
                    own = {"step": int(row["step"]), "kl": round(row["kl"], 4), value: round(row[value], 4)}
                    found.append({"variant": variant, "seed": run.seed, **own})
    best = optimal([row["kl"] for row in found], [row[value] for row in found])
    return [{**row, "pareto": one} for row, one in zip(found, best, strict=True)]


def cost_frontier(variants: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The win rate of every variant against each of its costs, whose `unit` tells them apart.

    Args:
        variants: of comparison.json.
    """
    found: list[dict[str, Any]] = []
    for cost, unit in COSTS.items():
        known = {name: row for name, row in variants.items() if row.get(cost)}
        values = [row["win_rate"]["value"] for row in known.values()]
        best = optimal([row[cost] for row in known.values()], values)
        for (name, row), value, one in zip(known.items(), values, best, strict=True):
            found.append({"variant": name, "cost": row[cost], "value": value, "unit": unit, "pareto": one})
    return found
