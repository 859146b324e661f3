"""A comparison as text: the answer in a sentence, a table, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from alignkit import visible
from alignkit_report.compare.budget import UNITS
from alignkit_report.pages.answers import by_rating, of_comparison

if TYPE_CHECKING:
    from collections.abc import Mapping


def show_comparison(found: Mapping[str, Any]) -> None:
    """Prints the answer, a row per variant (best rating first), and failed runs."""
    console = Console(highlight=False)
    console.print()
    for line in of_comparison(found, []):
        console.print(visible(line), markup=False)
    if found["variants"]:
        console.print()
        console.print(_table(found))
        console.print(visible(legend(found)), markup=False)
        console.print(_costs(found))
    for name, fit in found.get("fits", {}).items():
        console.print(visible(f"{name}: {fit['verdict']}"), markup=False)
    for name, why in found["failed"].items():
        console.print(visible(f"failed: {name}: {why}"), markup=False)


def legend(found: Mapping[str, Any]) -> str:
    """What the columns mean."""
    one = " One seed: the intervals say nothing about other seeds." if len(found["seeds"]) == 1 else ""
    return (
        f"rating: Elo points above the start, by {found['judge']}. KL: to the start, in nats per reply. In brackets: "
        f"95% intervals.{one}"
    )


def percent(estimate: Mapping[str, float]) -> str:
    """`85% [81, 87]`."""
    return f"{estimate['value']:.0%} [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"


def interval(estimate: Mapping[str, float], digits: int = 2) -> str:
    """`1.20 [1.10, 1.30]`."""
    value, low, high = (f"{estimate[name] + 0.0:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    rewards = found["rewards"]
    for heading in ("rating", "wins", *rewards, "KL", "words"):
        table.add_column(heading, justify="right")
    for name in by_rating(found):
        row = found["variants"][name]
        table.add_row(
            name,
            interval(row["rating"], 0),
            percent(row["win_rate"]),
            *(interval(row[reward]) for reward in rewards),
            interval(row["kl"], 1),
            f"{row['words']['value']:.1f}",
        )
    return table


def _costs(found: Mapping[str, Any]) -> Table:
    """What the alignment of a run has spent, the mean over seeds, and the peak memory of its process."""
    title = "Spent by the alignment of a run" + (f"; budget: {found['budget']}" if found["budget"] else "")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("prompts", "response tokens", "seconds", "FLOPs", "MiB"):
        table.add_column(heading, justify="right")
    for name in by_rating(found):
        row = found["variants"][name]
        spent = [row["spent"].get(unit) for unit in UNITS]
        shown = [
            "" if amount is None else f"{amount:.2e}" if unit == "flops" else f"{amount:,.0f}"
            for unit, amount in zip(UNITS, spent, strict=True)
        ]
        table.add_row(name, *shown, str(row["memory"] or ""))
    return table
