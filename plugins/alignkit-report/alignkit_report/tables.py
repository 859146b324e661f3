"""The figures of `alignkit preferences report` as tables, in text or on a page with plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit_report.figures import LENGTH_RATIOS
from alignkit_report.page import TEMPLATES
from alignkit_report.page import write_page as write_html

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Figures = Mapping[str, Any]
    Table = tuple[str, str, Sequence[str], Sequence[Sequence[Any]]]

NO_HEAD = ("", "")
ANNOTATOR_HEAD = ("annotator", "kind", "pairs", "first", "second", "ties", "abstained", "seconds")
POSITION = (
    "How often the response shown first wins, if the order is known (0.5 without bias, if both orders are equally"
    " frequent), and how often a pair gets the same verdict in both orders."
)
AUDIT = "The judge against people on pairs drawn at random; docs/reference/data.md has the rules of the verdict."
AGAINST = (
    "An AI against people. The majority drops pairs on which people disagree, and so flatters the AI: a random person"
    " says more."
)
ALPHA = (
    "Krippendorff's alpha: nominal of the verdicts 1, 2 and tie; of rankings of three or more, ordinal of the ranks."
)
CONTRADICTIONS = (
    "Pairs that one annotator judged more than once, and prompts with three or more responses whose verdicts are"
    " intransitive."
)
CONTRADICTION_HEAD = ("annotator", "repeated", "differing", "opposite", "rankings", "intransitive")


def text(figures: Figures, read: str = "") -> str:
    """The figures as aligned columns under headings: first what AIs' labels are worth, then `read`, what was read."""
    parts = [said for said in ("\n".join(figures["opening"]), read) if said]
    for title, said, head, rows in tables(figures):
        cells = [[str(cell) for cell in row] for row in ([head, *rows] if any(head) else rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        parts.append("\n".join([title, *([said] if said else []), *(f"  {line}" for line in lines)]))
    return "\n\n".join(parts)


def write_page(path: Path, title: str, figures: Figures) -> None:
    """Writes the tables and their plots as one HTML page that loads nothing from the network."""
    first, *_, last = bounds = [f"{bound:g}" for bound in LENGTH_RATIOS]
    write_html(
        path,
        TEMPLATES / "preferences.html",
        title=title,
        figures=figures,
        tables=tables(figures),
        length_bins=[f"< {first}", *(f"to {bound}" for bound in bounds[1:]), f"> {last}"],
        share_text=_share,
    )


def tables(figures: Figures) -> list[Table]:
    """(title, explanation, head, rows) of every table that has rows."""
    annotators = [(name, *map(_shown, said.values())) for name, said in figures["annotators"].items()]
    positions = [
        (name, _share(said["first_wins"]), said["ties"], _share(said["both_orders_agree"]))
        for name, said in figures["position"].items()
        if said
    ]
    lengths = [(name, _share(said["longer_wins"])) for name, said in figures["length"].items() if said]
    contradictions = [
        (name, *said.values())
        for name, said in figures["contradictions"].items()
        if said["repeated_pairs"] or said["rankings"]
    ]
    leaks = _named(figures["leakage"] or {})
    found: list[Table] = [
        ("Audit", AUDIT, NO_HEAD, _audit(figures["audit"] or {})),
        ("Counts", "", NO_HEAD, _named(figures["counts"])),
        ("Annotators", "Verdicts on pairs, and mean seconds per record.", ANNOTATOR_HEAD, annotators),
        *_agreement(figures["agreement"]),
        ("Position", POSITION, ("annotator", "first wins", "ties", "same in both orders"), positions),
        ("Length", "How often the longer response (in characters) wins.", ("by", "longer wins"), lengths),
        ("Contradictions", CONTRADICTIONS, CONTRADICTION_HEAD, contradictions),
        ("Duplicates", "Case, space and punctuation are ignored.", NO_HEAD, _named(figures["duplicates"])),
        ("Leakage", "Held-out prompts and responses that are in the file.", NO_HEAD, leaks),
        ("Cost", "", NO_HEAD, _named(figures["cost"])),
    ]
    return [table for table in found if table[-1]]


def _agreement(agreement: Figures) -> list[Table]:
    head = ("", "", "pairs", "agreement [95% interval]", "kappa [95% interval]")
    between = [(*row["annotators"], *_triple(row)) for row in agreement["between"]]
    against = [row for name, said in agreement["ai_against_people"].items() for row in _against(name, said)]
    alphas = {
        name: _with_interval(agreement[name], agreement[f"{name}_interval"])
        for name in ("alpha_people", "alpha_all", "alpha_rankings_people", "alpha_rankings_all")
        if agreement[name] is not None
    }
    return [
        ("Agreement", "Cohen's kappa of the verdicts 1, 2 and tie.", head, between),
        ("AI against people", " ".join(filter(None, (AGAINST, agreement["note"]))), head, against),
        ("Alpha", ALPHA, NO_HEAD, _named(alphas)),
    ]


def _against(name: str, said: Figures) -> list[Sequence[Any]]:
    """An AI's rows: a random person, each person, the majority and what it leaves out."""
    person = said["random_person"]
    alone = _with_interval(person["value"], (person["low"], person["high"]))
    rows = [(name, "a random person", person["n"], alone, "")]
    rows += [(name, who, *_triple(row)) for who, row in said["each_person"].items()]
    left_out = f"the majority ({said['left_out']} more pairs have none)" if said["left_out"] else "the majority"
    named = ((left_out, said), ("the majority, without ties", said["without_ties"]))
    return [*rows, *((name, which, *_triple(row)) for which, row in named if row and row["n"])]


def _audit(audit: Figures) -> list[Sequence[Any]]:
    shares = ("agree", "agree_where_both_decide", "people_agree", "people_agree_where_both_decide")
    rows = {name: _share(value) if name in shares else value for name, value in audit.items() if name != "each_person"}
    each = {f"agrees with {name}": _share(share) for name, share in audit.get("each_person", {}).items()}
    return [row for row in _named({**rows, **each}) if row[1] != ""]


def _triple(row: Figures) -> tuple[Any, ...]:
    agreement, kappa = ((row[name], row[f"{name}_interval"]) for name in ("agreement", "kappa"))
    return row["n"], _with_interval(*agreement), _with_interval(*kappa)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    known = interval is not None and None not in interval
    return f"{_shown(value)} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval and known else str(_shown(value))


def _named(figures: Figures) -> list[Sequence[Any]]:
    return [(name.replace("_", " "), _listed(value)) for name, value in figures.items()]


def _listed(value: Any) -> Any:
    return ", ".join(f"{key}: {count}" for key, count in value.items()) if isinstance(value, dict) else value


def _shown(value: Any) -> Any:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value


def _share(share: Figures | None) -> str:
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}], n = {share['n']}" if share else ""
