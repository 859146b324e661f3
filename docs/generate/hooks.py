"""The reference of the hooks and of the groups of entry points."""

from __future__ import annotations

import inspect

from alignkit import hookspecs
from alignkit.plugins import HOOKS, ROLES
from docs.generate.text import NOTE, docstring

ENTRY_POINTS = """\
## Groups of entry points

| group | names | called |
| --- | --- | --- |
| `alignkit` | a module with hooks | when plugins are looked up; the module must import neither torch nor transformers |
| `alignkit.commands` | a function with Typer annotations, or a `typer.Typer` | when its command runs |
| `alignkit.reports` | a module with `write_report(run)` and `notebook_html(run)` | when a run ends, and in notebooks |

[Plugins](../how-to/plugins.md) shows one of each.
"""


def hooks_page() -> str:
    """Every hook: its signature, the role of what it registers, an example call."""
    parts = [NOTE, "# Hooks\n", docstring(inspect.getdoc(hookspecs) or "")]
    parts.append("`alignkit.hookimpl` marks a function as the implementation of the hook of its name:\n")
    parts.append(
        "```python\nfrom alignkit import hookimpl\n\n\n@hookimpl\ndef register_reward_sources(register):\n"
        '    register("length", LengthReward)\n```\n'
    )
    for name, role in HOOKS.items():
        hook = getattr(hookspecs, name)
        base = ROLES[role].__name__
        signature = inspect.signature(hook)
        arguments = ", ".join(f"{key}: {value.annotation}" for key, value in signature.parameters.items())
        parts += [
            f"## `{name}`\n",
            f"```python\ndef {name}({arguments}) -> {signature.return_annotation}\n```\n",
            f"Registers a [`{base}`](interfaces.md#{base.lower()}), chosen by {_flags(role)}. For example,"
            f" {inspect.getdoc(hook)}.\n",
        ]
    return "\n".join([*parts, ENTRY_POINTS])


def _flags(role: str) -> str:
    return "the option `run.metrics`" if role == "metrics" else f"`--{role} NAME` or a recipe's table `[{role}]`"
