"""`alignkit preferences report`: the quality of a file of preferences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit import visible
from alignkit.commands import AsJson, Columns, Quiet, column_names, show
from alignkit_report.audit import audit_database, preferences_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit_data import Dataset

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Preferences in any form of `dataset`, or a run directory. Reads its audit too (docs/reference/data.md).",
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option("--held-out", metavar="FILE", help="Held-out records; counts their prompts and responses in FILE."),
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots.")]


def report(
    file: File,
    held_out: HeldOut = None,
    html: Html = None,
    columns: Columns = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a file of preferences: agreement, AI against people, bias, contradictions, leaks, cost.

    Examples:
        alignkit preferences report pairs.jsonl --html page.html
    """
    from alignkit import read_groups
    from alignkit_report.figures import figures
    from alignkit_report.tables import text, write_page

    renamed = column_names(columns)
    data = _read(preferences_of(file), renamed)
    exported = audit_database(file).with_suffix(".jsonl")
    audit = list(read_groups(exported)) if exported.is_file() else ()
    found = figures(data.groups(), _read(held_out, renamed).groups() if held_out else (), audit)
    if not audit and audit_database(file).is_file():
        found["opening"].append(f"People may have judged an audit: alignkit label export {audit_database(file)}")
    said = data.explain()
    if html:
        write_page(html, f"Preferences: {file.name}", found)
    if as_json:
        show({"file": str(file), "read": said, **found}, as_json=True)
        return
    print(visible(text(found, "" if quiet else said)))


def _read(path: Path, columns: Mapping[str, str]) -> Dataset:
    from alignkit_data import Dataset

    return Dataset.of_file(path, columns)
