"""`alignkit preferences report`: what a file of preferences is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from alignkit_data import Dataset

from alignkit.commands import AsJson, Columns, Quiet, column_names
from alignkit_report.page import text, write_page
from alignkit_report.preferences import figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit.records import Group

File = Annotated[Path, typer.Argument(metavar="FILE", help="Preferences in any form that `dataset` reads.")]
HeldOut = Annotated[
    Path | None,
    typer.Option("--held-out", metavar="FILE", help="Records whose prompts the file must not hold: counts leaks."),
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
    """Say what a file of preferences is worth: agreement, AI against people, bias, contradictions, leaks, cost."""
    renamed = column_names(columns)
    groups, said = _read(file, renamed)
    found = figures(groups, _read(held_out, renamed)[0] if held_out else ())
    if html:
        write_page(html, f"Preferences: {file.name}", found)
    if as_json:
        print(json.dumps({"file": str(file), "read": said, **found}, indent=1))
        return
    print(text(found) if quiet else f"{said}\n\n{text(found)}")


def _read(path: Path, columns: Mapping[str, str]) -> tuple[list[Group], str]:
    """The groups of a file, and what was found in it. Raises InputError where there is no such file."""
    source = Dataset.of_file(path, columns)
    return source.groups(), source.explain()
