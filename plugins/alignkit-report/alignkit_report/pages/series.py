"""Learning curves: figures of the training steps, over seeds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit_report.pages import charts
from alignkit_report.pages.document import NUMBER, Column, Lines, Plot, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Records = Sequence[Mapping[str, Any]]

FIGURES = {
    "gold_reward": ("Gold reward of rollouts", "gold"),
    "reward": ("Learned reward of rollouts", "reward"),
    "kl": ("KL to the reference", "nats per reply"),
    "accuracy": ("Pairs ordered as labelled", "share of pairs"),
    "margin": ("Margin between chosen and rejected", "margin"),
    "response_length": ("Length of a reply", "tokens"),
    "entropy": ("Entropy", "nats per token"),
    "clip_fraction": ("Clipped ratios", "share of tokens"),
    "loss": ("Loss", "loss"),
}
"""Figure -> what it is and its unit; the most interesting first. Learning rates, speeds and norms are no results."""
MINOR = ("clip_fraction", "loss")
"""Figures that few readers want."""
POINTS, ROWS = 100, 8
"""Points of a curve, and rows of its table."""

Point = tuple[float, float, float, float]
"""Step, and mean, lowest and highest over seeds."""


def curves(
    runs: Mapping[str, Sequence[Records]], numbers: Mapping[str, int], stage: str, prefix: str = ""
) -> list[Plot]:
    """A plot of every figure that some policy's steps of a stage have.

    Args:
        runs: policy -> the records of each seed.
        prefix: of the plots' titles.
    """
    found = []
    for figure, (title, unit) in FIGURES.items():
        lines = {name: line(of_seeds, stage, figure) for name, of_seeds in runs.items()}
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        if lines:
            name = f"{stage.replace('/', '-')}-{figure}"
            plot = _plot(name, prefix + title, unit, lines, numbers)
            found.append(replace(plot, minor=stage.startswith("sft") or figure in MINOR))
    return found


def line(seeds: Sequence[Records], stage: str, figure: str) -> list[Point]:
    """The curve of a figure: at most POINTS points, each of equally many steps."""
    of_seeds = [_changes([(r["step"], r[figure]) for r in run if r["stage"] == stage and figure in r]) for run in seeds]
    steps = sorted({step for run in of_seeds for step, _ in run})
    places = {step: place * POINTS // max(len(steps), POINTS) for place, step in enumerate(steps)}
    ends: dict[int, float] = {places[step]: step for step in steps}
    bins: dict[int, list[float]] = defaultdict(list)
    for run in of_seeds:
        means: dict[int, list[float]] = defaultdict(list)
        for step, value in run:
            means[places[step]].append(value)
        for place, values in means.items():
            bins[place].append(fmean(values))
    return [(ends[place], fmean(values), min(values), max(values)) for place, values in sorted(bins.items())]


def _changes(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points without those that repeat the one before: a figure of rollouts stands at every step on them."""
    ends = (0, len(points) - 1)
    return [point for place, point in enumerate(points) if place in ends or point[1] != points[place - 1][1]]


def _plot(name: str, title: str, unit: str, lines: Mapping[str, Sequence[Point]], numbers: Mapping[str, int]) -> Plot:
    rows = [
        {"policy": policy, "x": x, "y": y, "low": low, "high": high}
        for policy, points in lines.items()
        for x, y, low, high in points
    ]
    policies = {policy: numbers[policy] for policy in lines}
    titles = ("step", unit)
    return Plot(
        name,
        title,
        "",
        _table(name, lines),
        lambda width: charts.curves(rows, policies, titles, width),
        lines=Lines(unit, lines, policies),
    )


def _table(name: str, lines: Mapping[str, Sequence[Point]]) -> Table:
    """The curves at a few of their steps."""
    chosen = {policy: list(thinned(points)) for policy, points in lines.items()}
    steps = sorted({point[0] for points in chosen.values() for point in points})
    at = {policy: {point[0]: point[1] for point in points} for policy, points in chosen.items()}
    columns = [Column("step", NUMBER, digits=0), *(Column(policy, NUMBER) for policy in lines)]
    return Table(name, columns, [[step, *(at[policy].get(step) for policy in lines)] for step in steps])


def thinned(points: Sequence[Point]) -> Iterable[Point]:
    """At most ROWS points, the first and the last among them."""
    if len(points) <= ROWS:
        return points
    return (points[round(place * (len(points) - 1) / (ROWS - 1))] for place in range(ROWS))
