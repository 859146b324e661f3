"""`alignkit version` and `alignkit --version`."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from alignkit.commands import AsJson, show

PACKAGES = ("alignkit", "torch", "transformers", "accelerate", "pydantic", "typer")


def root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Options of `alignkit` itself."""
    if show_version:
        print(metadata.version("alignkit"))
        raise typer.Exit


def version(as_json: AsJson = False) -> None:
    """Show the versions of alignkit, its main dependencies and the installed plugins."""
    from alignkit.plugins import registry

    distributions = sorted({r.distribution for r in registry().registrations})
    show({name: metadata.version(name) for name in dict.fromkeys((*PACKAGES, *distributions))}, as_json)
