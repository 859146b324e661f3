"""`alignkit report`: a run, a comparison or a file of preferences as a page to send around."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit import InputError, Run, visible
from alignkit.commands import AsJson, Quiet, show
from alignkit_report.compare import RESULTS

if TYPE_CHECKING:
    from alignkit_report.pages.document import Document

Source = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|COMPARISON|PREFERENCES",
        help="A run directory, the folder of a comparison, or a file of preferences.",
    ),
]
Format = Annotated[str, typer.Option("--format", metavar="html|md|json|csv|png", help="What to write.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="PATH", help="File to write; of csv and png, a folder. [default: beside the source]"),
]


def report(
    source: Source, form: Format = "html", out: Out = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Write a report: the answer in a sentence, then tables, plots and samples on one page that needs no network.

    Examples:
        alignkit report runs/first
    """
    from alignkit_report.pages.formats import FOLDERS, WRITERS

    if form not in WRITERS:
        raise InputError(f"is no format: {form}", where="--format", fix=f"one of {', '.join(WRITERS)}")
    document = read_document(source)
    written = WRITERS[form](out or _beside(source, form, folder=form in FOLDERS), document)
    if as_json:
        found: dict[str, Any] = {
            "kind": document.kind,
            "answer": list(document.answer),
            "written": [*map(str, written)],
        }
        show(found, as_json=True)
        return
    if not quiet:
        print(visible("\n".join([*document.answer, ""])))
    print(visible("\n".join(map(str, written))))


def read_document(source: Path) -> Document:
    """The report of what stands at a path.

    Raises:
        InputError: it is no run, comparison or file of preferences.
    """
    from alignkit_report.pages import of_comparison, of_preferences, of_run

    folder = source.parent if source.name == RESULTS else source
    if (folder / RESULTS).is_file():
        try:
            found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            return of_comparison.document_of(folder, found)
        except ValueError as error:
            raise InputError("is damaged", where=str(folder / RESULTS), fix="run the comparison again") from error
    if (source / "run.json").is_file():
        return of_run.document_of(Run.open(source))
    if source.is_file():
        return of_preferences.document_of(source)
    raise InputError(
        "holds no run, comparison or preferences",
        where=str(source),
        fix="give a folder with run.json or comparison.json, or a file of preferences",
    )


def _beside(source: Path, form: str, *, folder: bool) -> Path:
    """Where a report stands if nobody says: in the source's folder, or beside the source's file."""
    end = f"-{form}" if folder else f".{form}"
    if source.is_dir():
        return source / f"report{end}"
    return source.parent / (f"report{end}" if source.name == RESULTS else f"{source.stem}-report{end}")
