"""The installed versions of what a run's numbers depend on."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata

CORE = "alignkit-core"
"""The distribution of the package `alignkit`; the one called `alignkit` only depends on it and on plugins."""
PACKAGES = ("torch", "transformers", "accelerate", "peft", "pydantic", "typer")


def main_versions() -> dict[str, str]:
    """Version by name: alignkit's, then those of the main packages that are installed."""
    found = {}
    for name, distribution in {"alignkit": CORE, **dict(zip(PACKAGES, PACKAGES, strict=True))}.items():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(distribution)
    return found
