"""report.html of every run, as one self-contained file; and what a notebook shows of a run.

The page that a run writes at its end has only the plots that need no Altair, which takes seconds to draw;
`alignkit report` writes it with all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit_report.page import TEMPLATES, render
from alignkit_report.pages.html import write_quick_html
from alignkit_report.pages.of_run import document_of

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit import Run


def write_report(run: Run) -> Path:
    """Writes `report.html` into the run's directory, from its files and the summaries of its stages."""
    return write_quick_html(run.path / "report.html", document_of(run))


def notebook_html(run: Run) -> str:
    """The run as a notebook shows it: the answer and the table of policies."""
    on = run.stages.get("eval", {}).get("on", "")
    return render(TEMPLATES / "run.html", path=run.path, on=on, document=document_of(run))
