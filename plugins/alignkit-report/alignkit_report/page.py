"""The figures of `alignkit preferences report` for people: as text, and as one HTML page with plots.

The page needs nothing from the network: its plots are inline SVG in the colours of the reader's scheme, light or dark.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from alignkit_report.preferences import LENGTH_RATIOS

from alignkit.runs.report import STYLE, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    Figures = Mapping[str, Any]
    Table = tuple[str, str, Sequence[str], list[Sequence[Any]]]

BAR, ROW, LABEL = 320, 22, 220
PAGE_STYLE = (
    STYLE
    + """
:root { --first: #2563eb; --second: #d97706; --tie: #7c8798; --none: #8884; }
.first { fill: var(--first); } .second { fill: var(--second); } .tie { fill: var(--tie); } .none { fill: var(--none); }
svg.plot { border: 0; max-width: 100%; } svg text { fill: currentColor; font-size: 13px; }
svg line { stroke: currentColor; stroke-width: 1; } svg line.half { opacity: .5; stroke-dasharray: 4 3; }
.key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem; }
"""
)


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
    """Writes the HTML page."""
    plots = {"Annotators": _verdict_bars(figures), "Agreement": _kappa_bars(figures)}
    plots |= {"Position": _position_plot(figures), "Length": _length_plots(figures)}
    body = [f"<h1>{escape(title)}</h1>"]
    for name, said, head, rows in tables(figures):
        body += [f"<h2>{escape(name)}</h2>", f"<p>{escape(said)}</p>" if said else "", plots.pop(name, "")]
        body.append(table(head, rows))
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    page = (
        f'<!doctype html><html lang="en"><head>{meta}<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head>'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{page}<body>{''.join(body)}</body></html>\n", encoding="utf-8")


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


def _plot(title: str, height: float, shapes: Iterable[str]) -> str:
    width = LABEL + BAR + 60
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img"'
        f' aria-label="{escape(title, quote=True)}">{"".join(shapes)}</svg>'
    )


def _label(x: float, y: float, said: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def _verdict_bars(figures: Figures) -> str:
    """One bar an annotator: shares of verdicts for the first, the second, neither, and abstentions."""
    kinds = {"first_better": "first", "second_better": "second", "ties": "tie", "abstained": "none"}
    shapes = []
    for number, (name, said) in enumerate(figures["annotators"].items()):
        x, y = float(LABEL), number * ROW
        shapes.append(_label(LABEL - 8, y + 15, _cut(name), "end"))
        for field, kind in kinds.items():
            width = BAR * said[field] / (said["pairs"] or 1)
            shapes.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}">'
                f"<title>{_words(field)}: {said[field]}</title></rect>"
            )
            x += width
    key = "".join(f'<span style="background: var(--{kind})"></span>{_words(field)}' for field, kind in kinds.items())
    return _plot("verdicts by annotator", len(figures["annotators"]) * ROW, shapes) + f'<p class="key">{key}</p>'


def _kappa_bars(figures: Figures) -> str:
    """Cohen's kappa of every two annotators, from 0 to 1; one below 0 has no bar."""
    rows = [row for row in figures["agreement"]["between"] if row["kappa"] is not None]
    shapes = []
    for number, row in enumerate(rows):
        y, width = number * ROW, BAR * max(0.0, row["kappa"])
        shapes += [
            _label(LABEL - 8, y + 15, _cut(" / ".join(row["annotators"])), "end"),
            f'<rect class="first" x="{LABEL}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}"></rect>',
            _label(LABEL + width + 5, y + 15, f"{row['kappa']:.3f}"),
        ]
    return _plot("Cohen's kappa of every two annotators", len(rows) * ROW, shapes) if rows else ""


def _position_plot(figures: Figures) -> str:
    """The share that the first response wins by annotator, with its interval, about the line of one half."""
    shares = {name: said["first_wins"] for name, said in figures["position"].items() if said and said["first_wins"]}
    height = len(shares) * ROW
    shapes = [f'<line class="half" x1="{LABEL + BAR / 2}" x2="{LABEL + BAR / 2}" y1="0" y2="{height}"/>']
    for number, (name, share) in enumerate(shares.items()):
        y = number * ROW + ROW / 2
        low, value, high = (LABEL + BAR * share[key] for key in ("low", "value", "high"))
        shapes += [
            _label(LABEL - 8, y + 4, _cut(name), "end"),
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>',
            f'<circle class="first" cx="{value:.1f}" cy="{y}" r="4"/>',
            _label(LABEL + BAR + 5, y + 4, f"{share['value']:.3f}"),
        ]
    return _plot("how often the response shown first wins", height, shapes) if shares else ""


def _length_plots(figures: Figures) -> str:
    """The share that the first response wins, by how many times as long as the second it is."""
    bounds = [f"{bound:g}" for bound in LENGTH_RATIOS]
    ticks = [f"< {bounds[0]}", *(f"to {bound}" for bound in bounds[1:]), f"> {bounds[-1]}"]
    drawn = []
    for name, said in figures["length"].items():
        if not said:
            continue
        shapes, step = [], 56
        for number, (share, tick) in enumerate(zip(said["first_wins_by_ratio"], ticks, strict=True)):
            x = 10 + number * step
            if share:
                height = 100 * share["value"]
                shapes.append(
                    f'<rect class="first" x="{x}" y="{104 - height:.1f}" width="{step - 16}" height="{height:.1f}">'
                    f"<title>{_share(share)}</title></rect>"
                )
            shapes.append(_label(x + (step - 16) / 2, 120, tick, "middle"))
        shapes.append(f'<line class="half" x1="0" x2="{len(ticks) * step}" y1="54" y2="54"/>')
        title = f"{name}: the first one's share of wins, by its length over the second's"
        drawn.append(f"<figure>{_plot(title, 126, shapes)}<figcaption>{escape(title)}</figcaption></figure>")
    return "".join(drawn)


def _cut(name: str, longest: int = 32) -> str:
    return name if len(name) <= longest else name[: longest - 3] + "..."
