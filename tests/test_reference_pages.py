"""The reference is whole: every public name, hook, option, algorithm and command has its place, with its text."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_docs import OWN
from test_house import PUBLIC
from typer.main import get_command

from alignkit import hookspecs
from alignkit.cli.app import build_app
from alignkit.recipe.describe import describe, groups_of, heading
from alignkit.recipe.tables import OPTION_TABLES, ROLE_OF_TABLE
from docs.generate.text import docstring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit.plugins import Registration

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
ALGORITHMS = [plugin for plugin in OWN if plugin.role == "optimizer"]
OTHERS = [plugin for plugin in OWN if plugin.role != "optimizer"]


def sections(*pages: str) -> dict[str, list[str]]:
    """Heading -> the texts below headings of that name, to the next heading."""
    found: dict[str, list[str]] = {}
    for page in pages:
        text = (REFERENCE / page).read_text(encoding="utf-8")
        for part in re.split(r"^#{1,3} ", text, flags=re.MULTILINE)[1:]:
            title, _, below = part.partition("\n")
            found.setdefault(title, []).append(below)
    return found


def missing(options: list[str], text: str) -> list[str]:
    return [key for key in options if f"| `{key}` |" not in text]


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_has_its_entry(package: str) -> None:
    face = import_module(package)
    found = sections(f"api/{package.rpartition('.')[2]}.md", *(["interfaces.md"] if package == "alignkit" else []))
    for name in face.__all__:
        assert f"`{name}`" in found, f"{package}.{name} has no entry: `make docs`, or add its package to docs/generate"
        first = (inspect.getdoc(getattr(face, name)) or "").partition("\n")[0].partition("<")[0]
        if inspect.isfunction(getattr(face, name)):
            assert any(first in text and f"def {name}(" in text for text in found[f"`{name}`"]), name


def test_every_hook_has_its_entry_with_its_signature_and_example() -> None:
    found = sections("hooks.md")
    hooks = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("register_")]
    assert len(hooks) == 6
    for name in hooks:
        (text,) = found[f"`{name}`"]
        assert f"def {name}(register: Register) -> None" in text
        assert str(inspect.getdoc(getattr(hookspecs, name))) in text


@pytest.mark.parametrize("plugin", ALGORITHMS, ids=str)
def test_an_algorithm_has_a_page_with_its_formula_and_every_option(plugin: Registration) -> None:
    name = f"algorithms/{plugin.name.replace('+', '-plus')}.md"
    text = (REFERENCE / name).read_text(encoding="utf-8")
    for part in ("```text\n", "- Source: ", "- Use it when: ", "## The options that matter\n"):
        assert part in text, f"{plugin} lacks {part!r}"
    shared = sections("algorithms/shared-options.md")
    groups = [heading(group) for group in groups_of(plugin.config) if group is not plugin.config]
    assert not [group for group in groups if f"- [{group}](shared-options.md#" not in text]
    everything = text + "".join(below for group in groups for below in shared[group])
    assert not missing([row.key for row in describe(plugin.config)], everything)
    assert not missing(list(plugin.config.matters), text)
    assert f"| [{plugin.name}]({name.removeprefix('algorithms/')}) |" in (REFERENCE / "algorithms/index.md").read_text()


def test_no_page_is_of_an_algorithm_that_there_is_not() -> None:
    names = {f"{plugin.name.replace('+', '-plus')}.md" for plugin in ALGORITHMS}
    assert {path.name for path in (REFERENCE / "algorithms").glob("*.*")} == names | {"index.md", "shared-options.md"}


@pytest.mark.parametrize("plugin", OTHERS, ids=str)
def test_every_option_of_a_plugin_has_its_row(plugin: Registration) -> None:
    options = [row.key for row in describe(plugin.config)]
    assert any(not missing(options, text) for text in sections("options.md")[f"`{plugin.name}`"])


def test_every_table_of_a_recipe_has_its_entry() -> None:
    found = sections("recipe.md")
    for name, config in OPTION_TABLES.items():
        assert not missing([row.key for row in describe(config)], found[f"`[{name}]`"][0])
    assert not missing([f"[{table}]" for table in ROLE_OF_TABLE], found["Tables with a plugin"][0])


def test_every_command_has_its_help() -> None:
    def below(group: Any, words: str) -> Iterator[str]:
        for name, command in group.commands.items():
            yield f"{words} {name}"
            yield from below(command, f"{words} {name}") if hasattr(command, "commands") else ()

    found = sections("cli.md")
    for words in below(get_command(build_app([])), "alignkit"):
        assert f"Usage: {words}" in found[f"`{words}`"][0]


def test_a_docstring_becomes_markdown() -> None:
    text = """One <two> `a<b>`.

Args:
    x: [S] a thing
        of two lines.
    y, z: more.

Raises:
    E: on <0.

End.

    code < 1"""
    assert docstring(text).splitlines() == [
        "One &lt;two> `a<b>`.", "", "Args:", "", "- `x`: [S] a thing", "  of two lines.", "- `y, z`: more.", "",
        "Raises:", "", "- `E`: on &lt;0.", "", "End.", "", "    code < 1",
    ]  # fmt: skip
