"""A report as Markdown, JSON, CSV files of its tables, and PNG files of its plots."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from alignkit import InputError, visible, write_synced
from alignkit_report.pages.charts import NARROW, WIDE
from alignkit_report.pages.document import TEXT
from alignkit_report.pages.html import write_html
from alignkit_report.pages.numbers import is_estimate, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from alignkit_report.pages.document import Document, Section, Table

SHOWN_SAMPLES = 8
"""Samples of a report in Markdown."""
PNG_SCALE = 1.6
"""How much wider a PNG is than the drawing of a narrow page."""


def tables_of(document: Document) -> list[Table]:
    """Every table: of the sections, and of their plots."""
    found = []
    for section in document.parts:
        found += [*section.tables, *(plot.table for plot in section.plots)]
    return found


def markdown(document: Document) -> str:
    """The report as text, its plots as tables."""
    parts = [f"# {_escaped(document.title)}", *(_escaped(said) for said in document.answer)]
    if document.alarms:
        parts.append("## Alarms")
        parts.append("\n".join(f"- **{_escaped(where)}**: {_escaped(what)}" for where, what in document.alarms))
    for section in document.parts:
        parts += _section(section)
    return visible("\n\n".join(parts)) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    if section.lead:
        yield _escaped(section.lead)
    yield from (_markdown_table(table) for table in section.tables)
    for plot in section.plots:
        yield f"### {_escaped(plot.title)}"
        yield _markdown_table(plot.table)
    for sample in section.samples[:SHOWN_SAMPLES]:
        yield f"**{_escaped(sample.prompt)}**"
        yield "\n".join(
            f"- {_escaped(reply.policy)}"
            + "".join(f", {name} {number(value, 2)}" for name, value in reply.figures.items())
            + f": {_escaped(reply.text)}"
            for reply in sample.replies
        )
    for listing in section.listings:
        yield _escaped(listing.title)
        yield "\n".join(f"    {line}" for line in listing.text.splitlines())


def _markdown_table(table: Table) -> str:
    head = [_escaped(column.title) for column in table.columns]
    rule = ["---" if column.kind == TEXT else "---:" for column in table.columns]
    rows = [[_escaped(str(cell)) for cell in row] for row in table.cells()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _escaped(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    marked = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(marked.split())


def figures_json(document: Document) -> str:
    """The report for programs: the answer, every figure with its interval, the samples."""
    found = {
        "kind": document.kind,
        "title": document.title,
        "answer": list(document.answer),
        "alarms": [{"where": where, "what": what} for where, what in document.alarms],
        "tables": {
            table.name: [dict(zip(_titles(table), row, strict=True)) for row in table.rows]
            for table in tables_of(document)
        },
        "samples": [
            {
                "prompt": sample.prompt,
                "spread": sample.spread,
                "replies": [{"policy": r.policy, "text": r.text, "figures": dict(r.figures)} for r in sample.replies],
            }
            for section in document.parts
            for sample in section.samples
        ],
    }
    return json.dumps(found, indent=1) + "\n"


def _titles(table: Table) -> list[str]:
    return [column.title or "name" for column in table.columns]


def table_csv(table: Table) -> str:
    """A table with a column for each end of an interval."""
    whole = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    head: list[str] = []
    columns: list[list[Any]] = []
    for title, values in zip(_titles(table), whole, strict=True):
        head.append(title)
        columns.append([_plain(value) for value in values])
        if any(is_estimate(value) for value in values):
            head += [f"{title} low", f"{title} high"]
            columns += [[value[end] if is_estimate(value) else None for value in values] for end in ("low", "high")]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *zip(*columns, strict=True)])
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A figure without its interval; a text that a spreadsheet would take for a formula gets a quote before it."""
    if isinstance(value, dict):
        return value.get("value")
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _write(path: Path, text: str) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, text)
    return [path]


def _write_csv(folder: Path, document: Document) -> list[Path]:
    return [path for table in tables_of(document) for path in _write(folder / f"{table.name}.csv", table_csv(table))]


def _write_png(folder: Path, document: Document) -> list[Path]:
    from alignkit_report.pages.drawing import png

    plots = [plot for section in document.parts for plot in section.plots]
    if not plots:
        raise InputError("has no plots", where=document.title, fix="choose another --format")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots:
        path = folder / f"{plot.name}.png"
        path.write_bytes(png(plot.draw(WIDE if plot.wide else round(PNG_SCALE * NARROW))))
        written.append(path)
    return written


WRITERS: dict[str, Callable[[Path, Document], Sequence[Path]]] = {
    "html": lambda path, document: [write_html(path, document)],
    "md": lambda path, document: _write(path, markdown(document)),
    "json": lambda path, document: _write(path, figures_json(document)),
    "csv": _write_csv,
    "png": _write_png,
}
"""Format -> what writes it to a file, or into a folder where it is several files."""
FOLDERS = ("csv", "png")
