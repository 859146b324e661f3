"""How the help of a command looks: the examples in its docstring stand as they are written, and rare options come last.

    \"\"\"Score the responses of groups with a reward.

    Examples:
        alignkit score groups.jsonl --reward rules --out scored.jsonl
    \"\"\"

An option is rare if its `rich_help_panel` is "Advanced".
"""

from __future__ import annotations

import inspect
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer
    from typer.models import CommandInfo

ADVANCED = "Advanced"
_HEADING = "Examples:\n"
_FIRST = ("Arguments", "Options")


def arrange_help(app: typer.Typer) -> None:
    """Gives every command this help, and every group the first example of each of its commands."""
    for command in app.registered_commands:
        if command.cls in (None, TyperCommand):
            command.cls = _Command
    for group in app.registered_groups:
        assert group.typer_instance is not None
        if not (group.cls or group.typer_instance.info.cls):
            group.cls = Group
        arrange_help(group.typer_instance)
        firsts = [_split(_text(one))[1].partition("\n")[0] for one in group.typer_instance.registered_commands]
        group.epilog = epilog("\n".join(filter(None, firsts)))


def epilog(examples: str) -> str:
    """Lines of examples, to stand below the options."""
    return f"\b\n{_HEADING}{indent(dedent(examples), '  ')}" if examples else ""


def _text(command: CommandInfo) -> str:
    return inspect.cleandoc(command.help or "") or inspect.getdoc(command.callback) or ""


def _split(text: str) -> tuple[str, str]:
    """What a help says, and its examples."""
    said, _, examples = text.partition(_HEADING)
    return said.rstrip(), dedent(examples).rstrip()


def names_command(arguments: Sequence[str]) -> bool:
    """Whether a group's arguments start with a command, so that none of them is an option of the group itself."""
    return bool(arguments) and not arguments[0].startswith("-")


class Group(TyperGroup):
    """A group that looks for its own `--help` only where it may stand: for an option that is not given, Typer imports
    pydantic, which takes longer than everything else that a command's help needs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the group's own options."""
        self.add_help_option = not names_command(args)
        return super().parse_args(ctx, args)


class _Command(TyperCommand):
    def __init__(self, *arguments: Any, help: str | None = None, **more: Any) -> None:
        said, examples = _split(help or "")
        super().__init__(*arguments, help=said, **(more | {"epilog": more.get("epilog") or epilog(examples)}))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Sections of arguments, of options, then of rare ones."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in _FIRST}
        for parameter in self.get_params(ctx):
            title = "Arguments" if parameter.param_type_name == "argument" else _panel(parameter)
            if record := parameter.get_help_record(ctx):
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _panel(parameter: object) -> str:
    return getattr(parameter, "rich_help_panel", None) or "Options"
