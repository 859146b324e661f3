"""Self-contained HTML pages, and Markdown, from Jinja templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit import visible, write_synced

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: Path, **values: Any) -> Path:
    """Renders a template to `path`; see `render`."""
    text = render(template, **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, text)
    return path


def render(template: Path, **values: Any) -> str:
    """Renders a template, which may extend `page.html` (title, style, body) and import the macro `table` from
    `tables.html`. Values are escaped in HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=template.suffix != ".md",
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
