"""What is installed: the names of our distributions and entry points, and the versions that a run depends on."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata

CORE = "alignkit-core"
"""The distribution of the package `alignkit`; the one called `alignkit` only depends on it and on plugins."""
_PLUGINS = "hf reward ppo dpo grpo data clicks report demo judge label serve trl vllm"
FIRST_PARTY = tuple(f"alignkit-{name}" for name in _PLUGINS.split())
"""The project's own distributions: they win when two plugins use one name."""
COMMANDS_GROUP = "alignkit.commands"
"""The entry points that add commands."""
PACKAGES = ("torch", "transformers", "accelerate", "peft", "pydantic", "typer")


def main_versions() -> dict[str, str]:
    """Version by name: alignkit's, then those of the main packages that are installed."""
    found = {}
    for name, distribution in {"alignkit": CORE, **dict(zip(PACKAGES, PACKAGES, strict=True))}.items():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(distribution)
    return found
