"""The figures of `alignkit preferences report` for people: tables, as text or as a page with plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import commands
from alignkit_report.figures import LENGTH_RATIOS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Figures = Mapping[str, Any]
    Table = tuple[str, str, Sequence[str], list[Sequence[Any]]]


def text(figures: Figures) -> str:
    """The figures as aligned columns under headings."""
    parts = []
    for title, said, head, rows in tables(figures):
        cells = [[str(cell) for cell in row] for row in ([head, *rows] if any(head) else rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        parts.append("\n".join([title, *([said] if said else []), *(f"  {line}" for line in lines)]))
    return "\n\n".join(parts)


def write_page(path: Path, title: str, figures: Figures) -> None:
    """Writes the tables with their plots as one HTML page, which needs nothing from the network."""
    first, *_, last = bounds = [f"{bound:g}" for bound in LENGTH_RATIOS]
    commands.write_page(
        path,
        Path(__file__).with_name("preferences.html"),
        title=title,
        figures=figures,
        tables=tables(figures),
        length_bins=[f"< {first}", *(f"to {bound}" for bound in bounds[1:]), f"> {last}"],
        share_text=_share,
    )


def tables(figures: Figures) -> list[Table]:
    """(title, explanation, head, rows) of every table; those without rows are left out."""
    found = [
        ("Counts", "", ("", ""), _counts(figures["counts"])),
        ("Annotators", "Verdicts on pairs; seconds are the mean of a record.", _ANNOTATOR_HEAD, _annotators(figures)),
        *_agreement(figures["agreement"]),
        ("Position", _POSITION, ("annotator", "first wins", "ties", "same in both orders"), _positions(figures)),
        ("Length", "How often the longer response wins, by characters.", ("by", "longer wins"), _lengths(figures)),
        ("Contradictions", _CONTRADICTIONS, _CONTRADICTION_HEAD, _contradictions(figures)),
        ("Duplicates", "Equal but for case, space and punctuation.", ("", ""), _plain(figures["duplicates"])),
        ("Leakage", "Held-out prompts and responses that the file holds.", ("", ""), _plain(figures["leakage"] or {})),
        ("Cost", "", ("", ""), _plain(figures["cost"])),
    ]
    return [(title, said, head, rows) for title, said, head, rows in found if rows]


_ANNOTATOR_HEAD = ("annotator", "kind", "pairs", "first", "second", "ties", "abstained", "seconds")
_POSITION = (
    "How often the response that was shown first wins, where the order is known: 0.5 without a bias if both orders are"
    " as frequent; and how often one pair gets the same verdict in both orders."
)
_CONTRADICTIONS = (
    "Pairs that one annotator judged more than once; and prompts with three or more responses whose verdicts run in a"
    " circle."
)
_CONTRADICTION_HEAD = ("annotator", "repeated", "differing", "opposite", "rankings", "in a circle")


def _counts(counts: Figures) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = []
    for name, value in counts.items():
        listed = ", ".join(f"{key}: {count}" for key, count in value.items()) if isinstance(value, dict) else value
        rows.append((_words(name), listed))
    return rows


def _annotators(figures: Figures) -> list[Sequence[Any]]:
    return [(name, *(_shown(value) for value in said.values())) for name, said in figures["annotators"].items()]


def _agreement(agreement: Figures) -> list[Table]:
    head = ("", "", "pairs", "agreement", "kappa")
    between = [(*row["annotators"], *_triple(row)) for row in agreement["between"]]
    against: list[Sequence[Any]] = []
    for name, row in agreement["ai_against_people"].items():
        against.append((name, "all", *_triple(row)))
        if row["without_ties"]:
            against.append((name, "without ties", *_triple(row["without_ties"])))
    alphas = [(_words(name), _shown(agreement[name])) for name in ("alpha_people", "alpha_all")]
    alpha = "Krippendorff's alpha, nominal, of the verdicts 1, 2 and tie."
    return [
        ("Agreement", "Cohen's kappa of the verdicts 1, 2 and tie.", head, list(between)),
        ("AI against people", "The people's most frequent verdict on each pair.", head, against),
        ("Alpha", alpha, ("", ""), [row for row in alphas if row[1] != ""]),
    ]


def _triple(row: Figures) -> tuple[Any, ...]:
    return row["n"], _shown(row["agreement"]), _shown(row["kappa"])


def _positions(figures: Figures) -> list[Sequence[Any]]:
    found = {name: said for name, said in figures["position"].items() if said}
    return [
        (name, _share(said["first_wins"]), said["ties"], _share(said["both_orders_agree"]))
        for name, said in found.items()
    ]


def _lengths(figures: Figures) -> list[Sequence[Any]]:
    return [(name, _share(said["longer_wins"])) for name, said in figures["length"].items() if said]


def _contradictions(figures: Figures) -> list[Sequence[Any]]:
    found = figures["contradictions"].items()
    return [(name, *said.values()) for name, said in found if said["repeated_pairs"] or said["rankings"]]


def _plain(figures: Figures) -> list[Sequence[Any]]:
    return [(_words(name), value) for name, value in figures.items()]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Any) -> Any:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value


def _share(share: Figures | None) -> str:
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}], n = {share['n']}" if share else ""
