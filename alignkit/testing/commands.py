"""`alignkit plugins new` and `alignkit plugins check`, for authors of plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import PluginFiles  # noqa: TC001 (Typer reads it)
from alignkit.errors import InputError
from alignkit.testing.scaffold import KINDS, write_distribution

NewName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the new plugin, in lower case.")]
NameOrAll = Annotated[
    str | None, typer.Argument(metavar="NAME", help="A plugin or distribution. [default: that of --plugin, or all]")
]
CheckOptions = Annotated[
    list[str] | None,
    typer.Option("-o", "--option", metavar="KEY=VALUE", help="An option that it needs: -o reward.path=x. Repeatable."),
]
Kind = Annotated[str, typer.Option("--kind", metavar="KIND", help=f"What it is: {', '.join(KINDS)}.")]
Parent = Annotated[Path, typer.Option("--out", metavar="DIR", help="Parent folder of the new plugin.")]


def add_commands(app: typer.Typer) -> None:
    """Adds `check` and `new`."""
    app.command("check")(check)
    app.command("new")(new)


def check(name: NameOrAll = None, plugin: PluginFiles = None, options: CheckOptions = None) -> None:
    """Run the contract tests of one plugin, or of all. Exits with 1 if one fails, with 2 if options are missing for
    what NAME asks for.

    Examples:
        alignkit plugins check ppo
        alignkit plugins check --plugin short.py
    """
    try:
        import pytest  # noqa: F401
    except ImportError as error:
        raise InputError("the contracts need pytest", fix="pip install pytest") from error
    from alignkit.testing import run_contracts

    raise typer.Exit(run_contracts(name or (plugin[0].name if plugin else None), options or ()))


def new(name: NewName, kind: Kind = "reward", out: Parent = Path()) -> None:
    """Create a plugin: a distribution with a short working component and its contract test.

    Examples:
        alignkit plugins new brevity
        alignkit plugins new my-ppo --kind optimizer
    """
    folder = write_distribution(name, out, kind)
    print(
        f"{folder} is a working plugin. Try it:\n"
        f"  pip install --no-build-isolation -e {folder}\n"
        f"  alignkit plugins show {name}\n"
        f"  alignkit plugins check {name}\n"
        f"  pytest {folder}"
    )
