"""The command tree: alignkit's own commands, and plugins' (entry-point group `alignkit.commands`)."""

from __future__ import annotations

import ast
import importlib.util
import os
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.cli import plugins, preferences, samples, stages
from alignkit.cli.help import Group, arrange_help, epilog, names_command
from alignkit.commands import AsJson, show
from alignkit.errors import blamed
from alignkit.versions import COMMANDS_GROUP, CORE, main_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EXAMPLES = """\
alignkit demo                                             # a small model, aligned in two minutes
alignkit run recipe.toml --optimizer dpo --out runs/dpo
alignkit plugins show ppo                                 # the options of a plugin"""


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """All commands. A plugin's command is loaded only if the arguments name it, and else only listed."""
    app = typer.Typer(
        name="alignkit",
        cls=Group,
        add_completion=not names_command(arguments),
        help="Align language models with preferences: SFT, reward models, PPO, DPO, every part a plugin.",
        epilog=epilog(EXAMPLES),
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    stages.add_commands(app)
    groups = {preferences.NAME: preferences.add_group(app)}
    samples.add_commands(app)
    app.add_typer(plugins.app, name="plugins")
    app.command("version")(_versions)
    _add_plugin_commands(app, groups, _words(arguments))
    arrange_help(app)
    return app


def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Options of `alignkit` itself."""
    if show_version:
        print(version(CORE))
        raise typer.Exit


def _versions(as_json: AsJson = False) -> None:
    """Show the versions of alignkit, its main dependencies and the installed plugins.

    Examples:
        alignkit version --json
    """
    from alignkit.plugins import registry

    distributions = sorted({r.distribution for r in registry().registrations})
    show({**main_versions(), **{name: version(name) for name in distributions}}, as_json)


def _words(arguments: Sequence[str]) -> list[str]:
    """The words of the command to run or to complete."""
    typed = os.environ.get("_TYPER_COMPLETE_ARGS", "").split()[1:]
    return [word for word in (*arguments, *typed) if not word.startswith("-")]


def _add_plugin_commands(app: typer.Typer, groups: Mapping[str, typer.Typer], words: Sequence[str]) -> None:
    """Adds the command of each entry point; `group.command` goes into alignkit's group of that name."""
    for point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda p: p.name):
        group, _, name = point.name.rpartition(".")
        parent = groups.get(group) if group else app
        if parent is None or name in _names(parent):
            continue
        if words[: 2 if group else 1] == [*filter(None, (group, name))]:
            _add(parent, name, _load(point))
        else:
            parent.command(name, help=_help_unloaded(point))(_not_loaded)


def _names(app: typer.Typer) -> set[str | None]:
    return {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}


def _help_unloaded(point: EntryPoint) -> str:
    """What the command's own source says of it, read without importing it or a package around it; else the summary of
    its distribution."""
    with suppress(Exception):  # whatever a broken plugin raises: the command itself tells
        package, *inside = point.module.split(".")
        spec = importlib.util.find_spec(package)
        for name in inside:
            spec = PathFinder.find_spec(name, spec.submodule_search_locations)  # type: ignore[union-attr]
        source = Path(spec.origin)  # type: ignore[arg-type, union-attr]
        if said := _help_in(ast.parse(source.read_text(encoding="utf-8")), point.attr):
            return said
    if point.dist is None or "Summary" not in point.dist.metadata:
        return f"A command of {point.dist.name if point.dist else point.value}."
    return point.dist.metadata["Summary"]


def _help_in(module: ast.Module, name: str) -> str:
    """The first paragraph of a function's docstring, or the `help` of a Typer app; empty if there is none."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n\n")[0]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(node.value, ast.Call):
            return next((str(ast.literal_eval(k.value)) for k in node.value.keywords if k.arg == "help"), "")
    return ""


def _load(point: EntryPoint) -> Any:
    distribution = point.dist.name if point.dist else point.value
    with blamed(f"the command {point.name!r} of {distribution}", "can't be loaded"):
        return point.load()


def _add(app: typer.Typer, name: str, loaded: typer.Typer | Callable[..., Any]) -> None:
    if not isinstance(loaded, typer.Typer):
        app.command(name)(loaded)
    elif len(loaded.registered_commands) == 1 and not loaded.registered_groups and not loaded.registered_callback:
        only = loaded.registered_commands[0].callback
        assert only is not None
        app.command(name)(only)
    else:
        app.add_typer(loaded, name=name)


def _not_loaded() -> None:
    """Stands in for a plugin's command that is only listed."""
