"""Describes the options of plugins, for `plugins show` and the docs. Imports no torch."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from alignkit.checking import default_of
from alignkit.options import Config

FIRST, OWN = "What matters first", "Its own"
"""Headings of the options to show first, and of those that the plugin itself defines."""
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class OptionHelp:
    """One option.

    Attributes:
        key: dotted, inside the table.
        type: with its range.
        default: as TOML.
        group: heading of its group; empty for the plugin's own options.
        matters: whether to show it first.
    """

    key: str
    type: str
    default: str
    help: str
    group: str = ""
    matters: bool = False


@dataclass(frozen=True)
class PluginText:
    """The docstring of an options class: its first paragraph, the other ones, and its sections."""

    summary: str
    more: str
    sections: Mapping[str, str]


SECTIONS = ("Formula", "Paper", "Use it when")
"""Sections of an Optimizer's docstring (docs/how-to/plugins.md), each `Name: text` up to the next or an empty line."""


def _docstring(config: type[Any]) -> str:
    """A class's own docstring; dataclasses write a signature where there is none."""
    text = inspect.cleandoc(config.__doc__ or "")
    return "" if config is Config or text.startswith(f"{config.__name__}(") else text


def first_line(config: type[Any]) -> str:
    """The first line of a class's own docstring."""
    return _docstring(config).partition("\n")[0]


def plugin_text(config: type[Any]) -> PluginText:
    """The parts of an options class's own docstring; empty if it has none."""
    sections: dict[str, list[str]] = {}
    paragraphs: list[list[str]] = [[]]
    target = paragraphs[0]
    for line in _docstring(config).splitlines():
        name, colon, text = line.partition(":")
        if not line:
            target = []
            paragraphs.append(target)
        elif colon and name in SECTIONS:
            target = sections.setdefault(name, [])
            target.append(text.strip())
        else:
            target.append(line.strip())
    first, *others = (" ".join(lines) for lines in paragraphs)
    joined = {name: ("\n" if name == "Formula" else " ").join(lines) for name, lines in sections.items()}
    return PluginText(first, "\n".join(filter(None, others)), joined)


def describe(config: type[Any]) -> list[OptionHelp]:
    """The options of a class by group, its own first; nested ones as `lora.r`."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints, docs, owners = get_type_hints(config, include_extras=True), field_docs(config), _owners(config)
    rows = []
    for group in groups_of(config):
        title = "" if group is config else heading(group)
        for name in [name for name in inspect.get_annotations(group) if owners.get(name) is group]:
            rows.append(OptionHelp(name, type_text(hints[name]), _default(fields[name]), docs.get(name, ""), title))
            for nested in (hints[name], *get_args(hints[name])):
                if isinstance(nested, type) and dataclasses.is_dataclass(nested):
                    rows += [dataclasses.replace(r, key=f"{name}.{r.key}", group=title) for r in describe(nested)]
    return [dataclasses.replace(row, matters=row.key in config.matters) for row in rows]


def sections(config: type[Any]) -> dict[str, list[OptionHelp]]:
    """Heading -> options, each once: those that matter, the plugin's own, then the groups.

    A single heading is left empty.
    """
    options = {option.key: option for option in describe(config)}
    found: dict[str, list[OptionHelp]] = {}
    for option in (*(options.pop(key) for key in config.matters), *options.values()):
        found.setdefault(FIRST if option.matters else option.group or OWN, []).append(option)
    return found if len(found) > 1 else {"": [option for listed in found.values() for option in listed]}


def groups_of(config: type[Any]) -> list[type[Any]]:
    """The classes that first define the options of a class, in the order of its bases."""
    return [base for base in config.__mro__ if base in _owners(config).values()]


def heading(group: type[Any]) -> str:
    """What a group is called: the first line of its docstring."""
    return first_line(group).removesuffix(".") or group.__name__


def _owners(config: type[Any]) -> dict[str, type[Any]]:
    """Option -> the class that first defines it."""
    names = {field.name for field in dataclasses.fields(config) if field.init}
    return {name: base for base in config.__mro__ for name in inspect.get_annotations(base) if name in names}


def field_docs(config: type[Any]) -> dict[str, str]:
    """Field -> the docstring under it, in one line; inherited fields included."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        found |= _own_docs(base)
    return found


@cache
def _own_docs(base: type[Any]) -> dict[str, str]:
    """Those of the fields that the class itself defines."""
    if not dataclasses.is_dataclass(base):
        return {}
    found = {}
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
    assert isinstance(defined, ast.ClassDef)
    for statement, below in pairwise(defined.body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def type_text(hint: Any) -> str:
    """A type as users read it: `float >= 0`, `"linear" | "cosine"`, `list of str`."""
    if get_origin(hint) is Annotated:
        inner, *constraints = get_args(hint)
        return " ".join([type_text(inner), *filter(None, map(_range, constraints))])
    if get_origin(hint) is Literal:
        return " | ".join(f'"{value}"' for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(type_text(option) for option in get_args(hint) if option is not type(None))
    origin = get_origin(hint) or hint
    if dataclasses.is_dataclass(hint) or origin is Any or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "table"
    if origin in (tuple, list):
        items = [item for item in get_args(hint) if item is not ...]
        return f"list of {' | '.join(dict.fromkeys(map(type_text, items)))}" if items else "list"
    return "path" if origin is Path else str(origin.__name__)


def _range(constraint: Any) -> str:
    bounds = [(sign, getattr(constraint, name, None)) for name, sign in _SIGNS.items()]
    return ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def _default(field: dataclasses.Field[Any]) -> str:
    value = default_of(field)
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{value}"'
    return "{}" if dataclasses.is_dataclass(value) else json.dumps(value)
