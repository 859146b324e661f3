"""`alignkit preferences`: the stage, and a group for other commands on preferences (`report`)."""

from __future__ import annotations

from typing import Any

import typer

from alignkit.cli.help import Group

NAME, DEFAULT = "preferences", "make"


class _WithDefault(Group):
    """A group that runs `make` unless the first word names another of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = bool(args) and args[0] in ("-h", "--help", *self.commands)
        return super().parse_args(ctx, args if known else [DEFAULT, *args])


def add_group(app: typer.Typer) -> typer.Typer:
    """Turns the stage's command into a group: `preferences ...` still works, and commands can be added."""
    stage = next(command for command in app.registered_commands if command.name == NAME)
    app.registered_commands.remove(stage)
    summary = str(stage.help).partition("\n\n")[0]
    group = typer.Typer(
        cls=_WithDefault,
        help=f"{summary} `alignkit {NAME} ...` is short for `alignkit {NAME} {DEFAULT} ...`.",
        rich_markup_mode=None,
    )
    stage.name = DEFAULT
    group.registered_commands.append(stage)
    app.add_typer(group, name=NAME)
    return group
