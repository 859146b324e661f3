"""The help of every command: how many options it shows before the rare ones, and an example that can be typed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

from alignkit import cli, registry
from alignkit.cli.app import build_app
from alignkit.plugins import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 25
OPTION = re.compile(r"^  (?:-\w, )?--[a-z]", re.MULTILINE)


@cache
def app_for(words: tuple[str, ...]) -> Any:
    """The tree of commands, with those of plugins that the first words name."""
    return get_command(build_app(words))


def _named(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words that decide which plugin's command is loaded."""
    return words[:2] if words[:1] == ("preferences",) else words[:1]


def commands_of(words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group, itself first."""
    group = app_for(_named(words))
    for word in words:
        group = group.commands[word]
    yield words
    for name in getattr(group, "commands", ()):
        yield from commands_of((*words, name))


COMMANDS = list(commands_of())


def test_there_are_commands() -> None:
    assert {("run",), ("plugins", "new"), ("compare",), ("preferences", "verdicts", "list")} <= {*COMMANDS}


HEAVY = ("torch", "transformers", "numpy", "pydantic", "rich", "jinja2", "alignkit_data", "alignkit.recipe.reading")
LISTED = ("pluggy", "alignkit.plugins", "alignkit_hf", "alignkit_judge", "alignkit_label", "alignkit_report")
HELPS = """
import json, sys
from contextlib import redirect_stdout
from alignkit.cli import run
heavy, listed, commands = map(json.loads, sys.argv[1:])
imported = {}
for words in commands:
    with redirect_stdout(sys.stderr):
        run([*words, "--help"])
    for name in sys.modules.keys() & {*heavy, *(() if words else listed)}:
        imported.setdefault(name, words)
print(json.dumps(imported))
"""


def test_no_help_imports_what_only_the_command_needs() -> None:
    assert COMMANDS[0] == ()
    command = [sys.executable, "-c", HELPS, *map(json.dumps, (HEAVY, LISTED, COMMANDS))]
    assert json.loads(subprocess.run(command, check=True, capture_output=True).stdout) == {}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_few_options_come_before_the_rare_ones_and_an_example_can_be_typed(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run([*words, "--help"]) == 0
    options, _, examples = capsys.readouterr().out.partition("\n  Examples:\n")
    usual, _, rare = options.partition("\nAdvanced:\n")
    assert len(OPTION.findall(usual)) <= MOST
    if words == ("run",):
        assert len(OPTION.findall(rare)) == 6
        assert "--optimizer NAME" in usual
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines, "its docstring has no paragraph `Examples:`"
    for line in lines:
        program, *typed = shlex.split(line, comments=True)
        assert program == "alignkit"
        if words[:1] != ("preferences",):  # whose `make` may be left out
            assert tuple(typed[: len(words)]) == words
        group = app_for(_named(tuple(typed)))
        while hasattr(group, "commands") and typed[0] in group.commands:
            name, *typed = typed
            group = group.commands[name]
        given = group.make_context(name, list(typed), resilient_parsing="--plugin" in typed).params
        for role in ROLES:
            chosen = given.get(role)
            assert not chosen or chosen in registry().names(role) or ":" in chosen, line


@pytest.mark.parametrize(("panel", "where"), [("Advanced", "rare"), (None, "usual")])
def test_a_plugins_command_has_the_same_help(
    panel: str | None, where: str, capsys: pytest.CaptureFixture[str], install_plugin: Any
) -> None:
    source = f'''
    from typing import Annotated
    import typer

    def greet(loud: Annotated[bool, typer.Option("--loud", help="Shout.", rich_help_panel={panel!r})] = False) -> None:
        """Say hello. It
        is short.

        Examples:
            alignkit greet --loud      # for all
            alignkit greet
        """
    '''
    install_plugin("greeter", source, group="alignkit.commands", name="greet", attribute="greet")
    assert cli.run(["greet", "--help"]) == 0
    said = capsys.readouterr().out
    assert "  Say hello. It is short.\n" in said
    assert said.endswith("\n  Examples:\n    alignkit greet --loud      # for all\n    alignkit greet\n")
    usual, _, rare = said.partition("\nAdvanced:\n")
    assert ("--loud" in (rare if where == "rare" else usual)) and "-h, --help" in usual
