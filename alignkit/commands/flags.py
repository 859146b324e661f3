"""What commands share: their flags, and how results are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from alignkit.errors import InputError, visible
from alignkit.runs.reporting import is_first_process

_RESULTS: ContextVar[TextIO | None] = ContextVar("results", default=None)


def _use_plugin_files(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    """Registers what these files register, until the command ends."""
    if files and not context.resilient_parsing:
        from alignkit.plugins import registry
        from alignkit.recipe.plugin_files import with_files

        found = registry()
        more = with_files(found, map(str, files))
        found.registrations, found.files = more.registrations, more.files
        context.call_on_close(registry.cache_clear)
    return files


Recipe = Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A TOML recipe. Flags can set everything in it.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="A TOML recipe.")]
PolicyName = Annotated[str, typer.Option("--policy", metavar="NAME", help="Policy plugin.")]
SamplerName = Annotated[str, typer.Option("--sampler", metavar="NAME", help="Who samples: policy, vllm.")]
PreferencesName = Annotated[
    str, typer.Option("--preferences", metavar="NAME", help="Preferences plugin, or module:function.")
]
RewardName = Annotated[str, typer.Option("--reward", metavar="NAME", help="Reward plugin, or module:function.")]
OptimizerName = Annotated[str, typer.Option("--optimizer", metavar="NAME", help="Algorithm plugin.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--option", metavar="KEY=VALUE", help="Set any option: -o optimizer.kl_coef=0.05. Repeatable."),
]
PluginFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        callback=_use_plugin_files,
        help="Python file with a plugin that is not installed. Repeatable.",
    ),
]
"""Its callback does the work, so a command that needs nothing else of it calls its parameter `_plugin`."""
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="OLD=NEW", help="Rename the data's column OLD to NEW. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout, progress as JSON lines on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and errors.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an earlier run with the same --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run with the same --out.")]


def column_names(columns: Sequence[str] | None) -> dict[str, str]:
    """`--columns old=new` as a mapping.

    Raises:
        InputError: one has no `=`.
    """
    names = {}
    for text in columns or ():
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise InputError("is not OLD=NEW", where=f"--columns {text}", fix="write it like --columns question=prompt")
        names[old] = new
    return names


def column_overrides(table: str, columns: Sequence[str] | None) -> list[str]:
    """`--columns old=new` as overrides of a data table. Raises what `column_names` raises."""
    return [f"{table}.columns.{json.dumps(old)}={json.dumps(new)}" for old, new in column_names(columns).items()]


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Keeps stdout for `show`: what else is printed there, by a plugin for instance, goes to stderr."""
    token = _RESULTS.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _RESULTS.reset(token)


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Prints a command's result on stdout, as JSON or as indented lines. Only the first process does."""
    if is_first_process():
        text = json.dumps(result, indent=1, default=str) if as_json else visible("\n".join(lines_of(result)))
        print(text, file=_RESULTS.get())


def lines_of(result: Mapping[str, Any], indent: str = "") -> list[str]:
    """A nested result as lines, without tables; an estimate and its interval share a line."""
    nested = {key for key, value in result.items() if isinstance(value, Mapping) and not _is_estimate(value)}
    width = max((len(str(key)) for key in result.keys() - nested), default=0)
    lines = []
    for key, value in result.items():
        if key in nested:
            lines += [f"{indent}{key}", *lines_of(value, indent + "  ")]
        elif not _is_table(value):
            lines.append(f"{indent}{key!s:<{width}}  {_text(value)}")
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _is_estimate(value: Mapping[str, Any]) -> bool:
    return {"value", "low", "high"} <= value.keys()


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        count = f", n = {value['n']}" if "n" in value else ""
        return f"{_text(value['value'])} [{_text(value['low'])}, {_text(value['high'])}{count}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
