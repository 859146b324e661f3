"""`alignkit plugins`: list plugins and show their options; authors' commands are in `alignkit.testing`."""

from __future__ import annotations

import dataclasses
import textwrap
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.commands import AsJson, PluginFiles, show
from alignkit.errors import AlignkitError, InputError, closest
from alignkit.testing import commands as authors
from alignkit.versions import COMMANDS_GROUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.plugins import Registration, Registry

app = typer.Typer(help="List, show, check and create plugins.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A plugin, or distribution:name.")]


@app.command("list")
def list_plugins(_plugin: PluginFiles = None, as_json: AsJson = False) -> None:
    """List the installed plugins by role, and broken ones with the reason.

    Examples:
        alignkit plugins list
    """
    from alignkit.plugins import ROLES, registry
    from alignkit.recipe.describe import first_line

    found = registry()
    ordered = [r for role in ROLES for r in sorted(found.registrations, key=lambda r: r.name) if r.role == role]
    commands = sorted({point.name: _distribution(point) for point in entry_points(group=COMMANDS_GROUP)}.items())
    if as_json:
        plugins = [{"role": r.role, "name": r.name, "distribution": r.distribution} for r in ordered]
        named = [{"name": name, "distribution": distribution} for name, distribution in commands]
        show({"plugins": plugins, "commands": named, "broken": list(map(dataclasses.asdict, found.broken))}, True)
        return
    lines = [(r.role, found.spelled(r), r.distribution, first_line(r.config)) for r in ordered]
    lines += [("command", name, distribution, "") for name, distribution in commands]
    lines += [("broken", b.name, b.distribution, b.error) for b in found.broken]
    print("\n".join(_aligned(lines)))


@app.command("show")
def show_plugin(name: Name, _plugin: PluginFiles = None, as_json: AsJson = False) -> None:
    """Show the options of a plugin: those that matter first, then the others by group.

    Examples:
        alignkit plugins show ppo
        alignkit plugins show short --plugin short.py
    """
    from alignkit.plugins import NOT_INSTALLED, ROLES, registry
    from alignkit.recipe.describe import describe

    found = registry()
    chosen = [found.get(role, name) for role in ROLES if _has(found, role, name)]
    if not chosen:
        broken = next((b for b in found.broken if name in (b.name, b.distribution)), None)
        if broken:
            raise AlignkitError(f"{broken.distribution} is broken: {broken.error}")
        known = {n for role in ROLES for n in found.names(role)}
        raise InputError(f"no plugin {name!r} is installed", fix=closest(name, known, NOT_INSTALLED))
    if as_json:
        rows = {id(r): [dataclasses.asdict(option) for option in describe(r.config)] for r in chosen}
        show({"plugins": [{"role": r.role, "name": r.name, "options": rows[id(r)]} for r in chosen]}, True)
        return
    print("\n\n".join("\n".join(_described(r)) for r in chosen))


authors.add_commands(app)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _has(found: Registry, role: str, name: str) -> bool:
    return any(name in (r.name, str(r)) for r in found.registrations if r.role == role)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _described(registration: Registration) -> list[str]:
    from alignkit.recipe.describe import plugin_text, sections

    lines = [f"{registration.role} {registration.name} (from {registration.distribution})"]
    text = plugin_text(registration.config)
    for paragraph in (text.summary, text.more, *(f"{name}: {said}" for name, said in text.sections.items())):
        for line in paragraph.splitlines():
            lines += textwrap.wrap(line, 100, subsequent_indent="  ")
    for title, options in sections(registration.config).items():
        lines += ["", title] if title else []
        for option in options:
            lines += ["", f"  {option.key}: {option.type} = {option.default}"]
            lines += textwrap.wrap(option.help, 100, initial_indent="      ", subsequent_indent="      ")
    return lines
