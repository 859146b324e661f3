"""A report as one HTML file that opens without a network, in light and dark, and prints."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from alignkit_report.page import TEMPLATES, write_page
from alignkit_report.pages import plain
from alignkit_report.pages.charts import NARROW, WIDE
from alignkit_report.pages.colours import DASHES, SHAPES, colour_of, mark_of
from alignkit_report.pages.numbers import short

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from alignkit_report.pages.document import Document, Plot

    Draw = Callable[[Plot], list[tuple[str, str]]]

MARKS = {
    "circle": '<circle cx="14" cy="5.5" r="4"/>',
    "square": '<path d="M10.4 1.9h7.2v7.2h-7.2z"/>',
    "triangle-up": '<path d="M14 1l5 8.6H9z"/>',
    "diamond": '<path d="M14 .2l4.4 5.3-4.4 5.3-4.4-5.3z"/>',
    "triangle-down": '<path d="M14 10L9 1.4h10z"/>',
    "cross": '<path d="M12.5 1h3v3h3v3h-3v3h-3V7h-3V4h3z"/>',
    "triangle-right": '<path d="M18.6 5.5L10 10.5V.5z"/>',
    "triangle-left": '<path d="M9.4 5.5L18 .5v10z"/>',
}


def write_html(path: Path, document: Document) -> Path:
    """Writes the page, which takes seconds because of its plots."""
    return _write(path, document, _drawn)


def write_quick_html(path: Path, document: Document) -> Path:
    """Writes the page with learning curves alone."""
    sections = [replace(section, plots=[plot for plot in section.plots if plot.lines]) for section in document.sections]
    quick = replace(document, sections=sections)
    hint = f" `alignkit report` with this {document.kind} writes it with all plots."
    return _write(path, quick, lambda plot: [("", plain.curves(plot.lines))] if plot.lines else [], hint)


def _write(path: Path, document: Document, draw: Draw, hint: str = "") -> Path:
    from markupsafe import Markup

    script = "".join((TEMPLATES / "report.js").read_text(encoding="utf-8"))
    digest = b64encode(sha256(script.encode()).digest()).decode()
    plots = [plot for section in document.parts for plot in section.plots]
    drawings = {plot.name: draw(plot) for plot in plots}
    return write_page(
        path,
        TEMPLATES / "report.html",
        title=f"{document.title} \u00b7 alignkit {document.kind}",
        document=document,
        drawings={name: [(kind, Markup(svg)) for kind, svg in of] for name, of in drawings.items()},
        swatch=lambda policy: Markup(_mark(policy)),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        short=short,
        typeset=typeset,
        footer=f"Written by alignkit on {datetime.now(UTC):%-d %B %Y}.{hint}",
    )


def typeset(text: str) -> str:
    """A sentence as printers set it: its apostrophes curved, an interval on one line."""
    return re.sub(r"(\[\S+,) (\S+\])", "\\1\u00a0\\2", text.replace("'", "\u2019"))


def _drawn(plot: Plot) -> list[tuple[str, str]]:
    """The drawings of a plot: (class, SVG); a wide one is drawn for narrow screens too."""
    from alignkit_report.pages.drawing import svg

    if plot.wide:
        return [("wide-drawing", svg(plot.draw(WIDE))), ("narrow", svg(plot.draw(NARROW)))]
    return [("", svg(plot.draw(NARROW)))]


def _mark(policy: int) -> str:
    """A policy's line and mark, for legends and tables."""
    colour, dash = f"var(--c{colour_of(policy)})", DASHES[mark_of(policy)]
    dashes = " ".join(map(str, dash)) if dash[1] else "none"
    line = f'<path d="M0 5.5h28" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dashes}"/>'
    mark = MARKS[SHAPES[mark_of(policy)]]
    return f'<svg class="swatch" viewBox="0 0 28 11" aria-hidden="true" fill="{colour}">{line}{mark}</svg>'
