"""A comparison as text: the answer in a sentence, a table, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from alignkit import visible
from alignkit_report.compare.budget import UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SURE = 0.05
"""Largest corrected p of a difference that is called one."""


def show_comparison(found: Mapping[str, Any]) -> None:
    """Prints the answer, a row per variant (best rating first), and failed runs."""
    console = Console(highlight=False)
    console.print()
    for line in answer(found):
        console.print(visible(line), markup=False)
    if found["variants"]:
        console.print(_table(found))
        console.print(visible(legend(found)), markup=False)
        console.print(_costs(found))
    for name, fit in found.get("fits", {}).items():
        console.print(visible(f"{name}: {fit['verdict']}"), markup=False)
    for name, why in found["failed"].items():
        console.print(visible(f"failed: {name}: {why}"), markup=False)


def answer(found: Mapping[str, Any]) -> list[str]:
    """The answer in sentences that the figures support."""
    if not found["variants"]:
        return ["No run has finished."]
    judge, ranked = found["judge"], by_rating(found)
    best = ranked[0]
    figures = found["variants"][best]
    lines = [
        f"{best} does best: by {judge}, its replies are preferred to those of its start in "
        f"{percent(figures['win_rate'])} of {figures['win_rate']['n']} duels; mean KL {figures['kl']['value']:.1f}"
    ]
    unsure = [name for name in ranked[1:] if not _differs(found, best, name)]
    if unsure:
        lines.append(f"Not told apart from it (p > {SURE} after correction): {', '.join(unsure)}.")
    elif ranked[1:]:
        lines.append(f"It differs from {all_of(ranked[1:])} (p <= {SURE} after correction).")
    return [*lines, f"Measured on {found['on']}, {_seeds(found)}."]


def all_of(others: Sequence[str]) -> str:
    """Other variants in a sentence: how many, or the name of a single one."""
    return f"all {len(others)} others" if len(others) > 1 else others[0]


def by_rating(found: Mapping[str, Any]) -> list[str]:
    """The variants, best rating first."""
    return sorted(found["variants"], key=lambda name: -found["variants"][name]["rating"]["value"])


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


def _differs(found: Mapping[str, Any], one: str, other: str) -> bool:
    pair = next(pair for pair in found["pairs"] if {pair["a"], pair["b"]} == {one, other})
    return bool(pair["p_corrected"] <= SURE)


def _seeds(found: Mapping[str, Any]) -> str:
    seeds = found["seeds"]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


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
