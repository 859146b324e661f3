"""A file of preferences as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit_data import Dataset

from alignkit import read_groups
from alignkit_report.audit import audit_database
from alignkit_report.figures import LENGTH_RATIOS, figures
from alignkit_report.pages import charts
from alignkit_report.pages.answers import plural
from alignkit_report.pages.document import NUMBER, PERCENT, Column, Document, Plot, Section, Table
from alignkit_report.tables import tables

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WORTH_SAYING = 0.05
"""By how much length must move the share of wins for the answer to name it."""


def document_of(path: Path) -> Document:
    """The report of a file of preferences, with its audit if there is one."""
    data = Dataset.of_file(path, {})
    audited = audit_database(path).with_suffix(".jsonl")
    found = figures(data.groups(), (), list(read_groups(audited)) if audited.is_file() else ())
    plots: dict[str, list[Plot]] = {"Position": _position(found), "Length": _length(found), "Agreement": _kappas(found)}
    sections = [
        Section(
            title,
            said,
            [Table(title.lower().replace(" ", "-"), [Column(name) for name in head], rows, sortable=any(head))],
            plots.get(title, ()),
        )
        for title, said, head, rows in tables(found)
    ]
    return Document("preferences", path.name, answer(found), sections=sections)


def answer(found: Mapping[str, Any]) -> list[str]:
    """What the file holds, and what its labels are worth."""
    counts = found["counts"]
    said = f"{plural(counts['ordered_pairs'], 'ordered pair')} of replies to {plural(counts['prompts'], 'prompt')}" + (
        f", and {plural(counts['tied_pairs'], 'tie')}" if counts["tied_pairs"] else ""
    )
    longer = (found["length"].get("ranks") or {}).get("longer_wins")
    if longer and (longer["low"] > 0.5 + WORTH_SAYING or longer["high"] < 0.5 - WORTH_SAYING):
        which, share = ("longer", longer["value"]) if longer["value"] > 0.5 else ("shorter", 1 - longer["value"])
        said += f"; the {which} reply wins in {share:.0%} of them"
    return [f"{said}.", *found["opening"]]


def _position(found: Mapping[str, Any]) -> list[Plot]:
    rows = [
        {"policy": name, **said["first_wins"]}
        for name, said in found["position"].items()
        if said and said["first_wins"]
    ]
    return _plot("position-of-winners", "How often the reply shown first wins", rows)


def _length(found: Mapping[str, Any]) -> list[Plot]:
    first, *_, last = bounds = [f"{bound:g}" for bound in LENGTH_RATIOS]
    names = [f"< {first}", *(f"to {bound}" for bound in bounds[1:]), f"> {last}"]
    plots = []
    for by, said in found["length"].items():
        shares = zip(names, said["first_wins_by_ratio"] if said else (), strict=False)
        rows = [{"policy": name, **share} for name, share in shares if share]
        title = f"{by}: how often the first reply wins, by its length over the second's"
        plots += _plot(f"length-by-{by}", title, rows)
    return plots


def _kappas(found: Mapping[str, Any]) -> list[Plot]:
    rows = [
        {"policy": " / ".join(said["annotators"]), "value": said["kappa"], "low": low, "high": high}
        for said in found["agreement"]["between"]
        if said["kappa"] is not None and said["kappa_interval"] and None not in said["kappa_interval"]
        for low, high in [said["kappa_interval"]]
    ]
    return _plot("kappa", "Cohen's kappa of every two annotators", rows, "kappa", 0.0)


def _plot(
    name: str, title: str, rows: list[dict[str, Any]], unit: str = "share of wins", at: float = 0.5
) -> list[Plot]:
    if not rows:
        return []
    policies = {row["policy"]: 1 for row in rows}
    kind = PERCENT if at else NUMBER
    table = Table(name, [Column(""), Column(unit, kind)], [[row["policy"], row] for row in rows])

    def draw(width: int) -> Any:
        return charts.intervals(rows, policies, unit, width, at, "%" if at else "")

    slug = "-".join(name.split())
    return [Plot(slug, title, "Lines: 95% intervals. Dashed: no difference." if at else "", table, draw)]
