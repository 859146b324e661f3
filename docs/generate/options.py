"""The reference of the options: a recipe's own tables, and every plugin but the algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.plugins import Registration, registry
from alignkit.recipe.describe import OptionHelp, describe, plugin_text, sections
from alignkit.recipe.tables import DEFAULT_PLUGIN, OPTION_TABLES, ROLE_OF_TABLE
from alignkit.versions import FIRST_PARTY
from docs.generate.text import NOTE, cell, slug, table

if TYPE_CHECKING:
    from collections.abc import Sequence

ROLES = {
    "policy": "Policies",
    "sampler": "Samplers",
    "reward": "Rewards",
    "preferences": "Preferences, demonstrations and prompts",
    "metrics": "Receivers of metrics",
}
TABLES = {
    "policy": "the language model",
    "sampler": "who makes the rollouts",
    "demonstrations": "what SFT learns from",
    "sft": "the algorithm of SFT",
    "ptx": "texts in the loss, against forgetting",
    "prompts": "the prompts of rollouts",
    "preferences": "rankings, pairs or labels: a data set or a labeller",
    "reward": "what scores responses; `train` is the algorithm that trains a reward model",
    "optimizer": "the alignment algorithm",
}
RECIPE = """\
A recipe is a TOML file. Each table below can stand in it; `-o TABLE.KEY=VALUE` changes one option on the command line.
In a table with a plugin, `plugin` names it, and its other keys are the plugin's options. `[TABLE.for.NAME]` holds
options that count only where the plugin NAME is chosen.

## Tables with a plugin
"""


def recipe_page() -> str:
    """The tables of a recipe, and the options of those without a plugin."""
    rows = []
    for name, role in ROLE_OF_TABLE.items():
        default = f"`{DEFAULT_PLUGIN[name]}`" if name in DEFAULT_PLUGIN else ""
        listed = f"options.md#{slug(ROLES[role])}" if role in ROLES else "algorithms/index.md"
        rows.append([f"`[{name}]`", TABLES[name], default, f"[of its plugins]({listed})"])
    parts = [NOTE, "# The recipe\n", RECIPE, *table(["table", "what it is", "default plugin", "options"], rows)]
    for name, config in OPTION_TABLES.items():
        parts += [f"## `[{name}]`\n", _about(config)]
        parts += option_table(describe(config))
    return "\n".join(parts)


def _about(config: type[Any]) -> str:
    """What a table is for: the first line of its docstring behind the table's name."""
    text = plugin_text(config).summary.rpartition("`: ")[2]
    return f"{text[:1].upper()}{text[1:]}\n"


def options_page() -> str:
    """The options of every plugin but the algorithms."""
    parts = [
        NOTE,
        "# Options of plugins\n",
        "What can stand in a plugin's table of a recipe, or follow `-o`. The algorithms have a page each,"
        " [Algorithms](algorithms/index.md); [The recipe](recipe.md) has the tables without a plugin."
        " `alignkit plugins show NAME` says the same on the command line.\n",
    ]
    for role, title in ROLES.items():
        parts.append(f"## {title}\n")
        for plugin in own_plugins(role):
            parts += [f"### `{plugin.name}`\n", plugin_text(plugin.config).summary + "\n"]
            parts.append(f"From {plugin.distribution}.\n")
            for heads, rows in sections(plugin.config).items():
                parts += [f"{heads}:\n" if heads else "", *option_table(rows)]
    return "\n".join(parts)


def own_plugins(role: str) -> list[Registration]:
    """The project's own plugins of a role, by name."""
    broken = [f"{plugin.distribution}: {plugin.error}" for plugin in registry().broken]
    assert not broken, broken
    found = [plugin for plugin in registry().registrations if plugin.role == role]
    return sorted((p for p in found if p.distribution in FIRST_PARTY), key=lambda plugin: plugin.name)


def option_table(rows: Sequence[OptionHelp]) -> list[str]:
    """The options as a table; nothing where there are none."""
    if not rows:
        return []
    cells = [[f"`{row.key}`", cell(row.type), f"`{cell(row.default)}`", cell(row.help)] for row in rows]
    return table(["option", "type", "default", "what it does"], cells)
