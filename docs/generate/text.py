"""What the generated pages share: tables, anchors, docstrings as Markdown, and the folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INPUTS = Path(__file__).resolve().parent
DOCS = INPUTS.parent
ROOT = DOCS.parent
NOTE = "<!-- Written by docs/generate (`make docs`); don't edit. -->\n"
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
ITEM = re.compile(r" {4}(\S[^:`]*|`[^`]*`[^:]*): (.*)")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, as one paragraph of a page."""
    lines = [head, ["---"] * len(head), *rows]
    return ["\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"]


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|")


def slug(title: str) -> str:
    """The anchor of a heading, on GitHub and on the site."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def escaped(text: str) -> str:
    """Text whose `<` outside of code is no HTML."""
    return re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)


def docstring(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if found := SECTION.fullmatch(line):
            inside = True
            lines += [f"{found[1]}:", ""]
        elif inside and (item := ITEM.fullmatch(line)):
            lines.append(f"- `{item[1].strip('`')}`: {escaped(item[2])}")
        elif inside and line.startswith("    "):
            lines.append(("  " if lines[-1] else "- ") + escaped(line.strip()))
        else:
            inside = inside and not line
            lines.append(line if line.startswith("    ") else escaped(line))
    return "\n".join(lines).strip() + "\n"
