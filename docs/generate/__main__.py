"""Writes the pages that are generated from the program: `make docs`. `--check` only says what is stale.

- reference/cli.md: the help of every command.
- reference/algorithms/, options.md, recipe.md: from the installed plugins of this project (how-to/plugins.md, "How a
  plugin is documented") and the recipe's tables. What the algorithms' pages say was measured, and their curves, come
  from comparison.json; docs/generate/measured.py says how to renew it.
- reference/hooks.md, interfaces.md, api/: from the signatures and docstrings of the public names.
- explanation/reliability.md: from reliability.toml, where every fault stands with its tests.
- in the README and docs/**/*.md, code blocks below `<!-- from: PATH -->` or `<!-- from: PATH#Name -->`: the file, or
  the class or function in it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from docs.generate.algorithms import algorithm_pages, pictures
from docs.generate.api import api_pages
from docs.generate.curves import FOLDER
from docs.generate.hooks import hooks_page
from docs.generate.options import options_page, recipe_page
from docs.generate.reliability import reliability_page
from docs.generate.text import DOCS, NOTE, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

WIDTH = 80
SNIPPET = re.compile(r"(<!-- from: (\S+) -->\n+```\w*\n)(.*?)(^```$)", re.DOTALL | re.MULTILINE)


def cli_page() -> str:
    """The help of every command, as it is printed."""
    parts = [NOTE, "# The command line\n"]
    for command in (), *_commands():
        parts.append(f"## `{' '.join(('alignkit', *command))}`\n\n```console\n{_help(command)}\n```\n")
    return "\n".join(parts)


def _commands() -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups after the group."""
    from typer.main import get_command

    from alignkit.cli.app import build_app

    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, command in group.commands.items():
            yield (*words, name)
            if hasattr(command, "commands"):
                yield from below(command, (*words, name))

    yield from below(get_command(build_app([])), ())


def _help(command: Sequence[str]) -> str:
    from alignkit.cli import run

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = run([*command, "--help"])
    assert code == 0, (command, text.getvalue())
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def with_snippets(text: str) -> str:
    """The page with every code block below `<!-- from: ... -->` as the file now is."""
    return SNIPPET.sub(lambda match: match[1] + _excerpt(match[2]) + "\n" + match[4], text)


def _excerpt(source: str) -> str:
    """The text of `PATH`, or of a class or function at its top level: `PATH#Name`."""
    path, _, name = source.partition("#")
    text = (ROOT / path).read_text(encoding="utf-8").strip()
    if not name:
        return text
    found = next(node for node in ast.parse(text).body if getattr(node, "name", "") == name)
    first = min([found.lineno, *(node.lineno for node in getattr(found, "decorator_list", []))])
    return "\n".join(text.splitlines()[first - 1 : found.end_lineno])


def pages() -> dict[Path, str]:
    """Every generated page, and every page with snippets, as it should be."""
    os.environ["COLUMNS"] = str(WIDTH)
    generated = {
        "reference/cli.md": cli_page(),
        "reference/recipe.md": recipe_page(),
        "reference/options.md": options_page(),
        "reference/hooks.md": hooks_page(),
        "explanation/reliability.md": reliability_page(),
        **algorithm_pages(),
        **pictures(),
        **api_pages(),
    }
    made = {DOCS / path: text for path, text in generated.items()}
    written = [path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if path not in made and path.exists()]
    written = [path for path in written if not path.is_relative_to(DOCS / FOLDER)]
    return made | {path: with_snippets(path.read_text(encoding="utf-8")) for path in written}


def left_over(wanted: Sequence[Path]) -> list[Path]:
    """Pages and pictures of algorithms that there are no more."""
    return [path for path in (DOCS / FOLDER).rglob("*.*") if path not in wanted]


def main(arguments: Sequence[str]) -> int:
    """Writes the pages, or with `--check` names those that are stale; 1 where there are any."""
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    gone = left_over(list(wanted))
    if "--check" in arguments:
        for path in (*stale, *gone):
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        return 1 if stale or gone else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    for path in gone:
        path.unlink()
        print(f"removed {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
