"""Recipes: tables by role, plugins picked by flags, anything set by `-o`; checked before torch is imported.

The tables come from a TOML file or, in Python, from a mapping. Later ones win: default, recipe, flag, `-o`. One recipe
can hold settings for several plugins of a table: `[optimizer.for.dpo]` overrides `[optimizer]` when the plugin is dpo.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alignkit.checking import Problem, secrets_in
from alignkit.errors import InputError, closest
from alignkit.recipe.functions import name_of_function
from alignkit.recipe.tables import ALTERNATIVES, OPTION_TABLES, ROLE_OF_TABLE
from alignkit.recipe.toml_lines import key_lines, split_key
from alignkit.records import check_storable

if TYPE_CHECKING:
    from pathlib import Path

    Key = tuple[str, ...]


@dataclass(frozen=True)
class Spelling:
    """How the user writes options and plugin names outside the recipe, for messages: as formats."""

    option: str
    flag: str

    def of_option(self, key: Key) -> str:
        """`-o optimizer.beta` or `options["optimizer.beta"]`."""
        return self.option.format(key=".".join(key))


DATA = (".jsonl", ".json", ".parquet", ".csv")
"""Ends of files that hold no recipe."""
COMMAND_LINE = Spelling("-o {key}", "--{table} {name}")
PYTHON = Spelling('options["{key}"]', '{table}="{name}"')


@dataclass(frozen=True)
class Recipe:
    """A recipe with flags and `-o`, not checked yet.

    Attributes:
        path: of the file; None if the tables come from Python, or there are none.
        tables: of the recipe.
        lines: key path -> line of the file.
        flags: table -> plugin name.
        overrides: (key path, value) of each `-o`, in order.
        spelling: how the user wrote flags and overrides.
    """

    path: Path | None = None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lines: Mapping[Key, int] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[tuple[Key, Any]] = ()
    spelling: Spelling = COMMAND_LINE

    @property
    def by_flag(self) -> list[str]:
        """The tables that flags or `-o` set."""
        return [*self.flags, *(key[0] for key, _ in self.overrides)]

    def component_tables(self) -> list[str]:
        """The tables with a plugin that the file, a flag or an override sets; demonstrations imply `sft`."""
        named = {*self.tables, *self.by_flag}
        if "demonstrations" in named:
            named.add("sft")
        return [table for table in ROLE_OF_TABLE if table in named]

    def override_table(self, table: str) -> dict[str, Any]:
        """The values that `-o` sets in a table."""
        merged: dict[str, Any] = {}
        for key, value in self.overrides:
            if key[0] == table:
                _set(merged, key[1:], value, where=self.spelling.of_option(key))
        return merged

    def where(self, table: str, key: Key, plugin: str = "") -> str:
        """Where the user set a key: `recipe.toml:12 [optimizer] kl_coef` or `-o optimizer.kl_coef`."""
        full = (table, *key)
        if any(given == full[: len(given)] or full == given[: len(full)] for given, _ in self.overrides if key):
            return self.spelling.of_option(full)
        flag = self.flags.get(table, "")
        if flag and (key == ("plugin",) or (len(key) == 1 and ":" in flag and full not in self.lines)):
            return self.spelling.flag.format(table=table, name=flag)
        for length in range(len(key), -1, -1):
            for header in ((table, ALTERNATIVES, plugin), (table,)):
                if line := self.lines.get((*header, *key[:length])):
                    return f"{self.path}:{line} [{'.'.join(header)}] {'.'.join(key)}".rstrip()
        named = (self.spelling.of_option(given) for given, _ in self.overrides if given[0] == table and not key)
        return next(named, ".".join(full))

    def error(self, table: str, problem: Problem, plugin: str = "") -> InputError:
        """A problem with a table's options, as an error with its location."""
        alone = problem.missing and len(problem.key) == 1
        option = self.spelling.of_option((table, *problem.key))
        fix = f"set {option}=VALUE, or set it in the recipe" if alone else problem.fix
        return InputError(problem.what, where=self.where(table, problem.key, plugin), fix=fix)

    def extend_import_path(self) -> None:
        """Lets `module:function` name modules next to the recipe."""
        if self.path is not None and (folder := str(self.path.resolve().parent)) not in sys.path:
            sys.path.append(folder)


def load_recipe(path: Path | None, *, flags: Mapping[str, str], overrides: Sequence[str]) -> Recipe:
    """Reads a recipe file, if any, with flags (table -> plugin name) and overrides (`a.b=c`).

    Raises:
        InputError: the file is missing or not TOML, or a table is unknown; with `file:line` or the override.
    """
    named = {table: name for table, name in flags.items() if name}
    return _checked(path, named, [parse_override(text) for text in overrides], COMMAND_LINE)


def recipe_of(
    source: Path | Mapping[str, Any] | None, *, flags: Mapping[str, Any], options: Mapping[str, Any]
) -> Recipe:
    """The recipe of a file or of tables, with settings from Python.

    Args:
        flags: table -> plugin name, or a function.
        options: dotted key -> value.

    Raises:
        InputError: as `load_recipe`, or a value can't be part of a recipe.
    """
    names = {table: _plugin_name(table, value) for table, value in flags.items() if value}
    overrides = []
    for dotted, value in options.items():
        where = PYTHON.option.format(key=dotted)
        key = _key_of(str(dotted), where, "write table.option, as in optimizer.kl_coef")
        overrides.append((key, _plain(value, where)))
    return _checked(source, names, overrides, PYTHON)


def _checked(
    source: Path | Mapping[str, Any] | None,
    flags: Mapping[str, str],
    overrides: Sequence[tuple[Key, Any]],
    spelling: Spelling,
) -> Recipe:
    """The recipe, after checking that all its tables exist and nothing in it looks like a secret."""
    if isinstance(source, Mapping):
        tables = {str(table): _plain(value, str(table)) for table, value in source.items()}
        recipe = Recipe(None, tables, {}, flags, overrides, spelling)
    else:
        recipe = Recipe(source, *(read_tables(source) if source else ({}, {})), flags, overrides, spelling)
    try:
        check_storable(json.dumps([recipe.tables, recipe.flags, recipe.overrides], ensure_ascii=False, default=str))
    except ValueError as error:
        raise InputError(str(error), where=str(recipe.path or "recipe"), fix="write whole characters") from error
    plugins = [((table, "plugin"), name) for table, name in flags.items()]
    for key, value in (((), recipe.tables), *plugins, *overrides):
        for problem in secrets_in(value, key):
            table, *inner = problem.key
            raise replace(recipe, flags={}).error(table, replace(problem, key=tuple(inner)))
    for table in (*recipe.tables, *recipe.by_flag):
        if table not in ROLE_OF_TABLE and table not in OPTION_TABLES:
            raise InputError(
                f"a recipe has no table {table!r}",
                where=recipe.where(table, ()),
                fix=closest(table, [*ROLE_OF_TABLE, *OPTION_TABLES]),
            )
        if not isinstance(recipe.tables.get(table, {}), dict):
            raise InputError("must be a table", where=recipe.where(table, ()), fix=f"write [{table}], then its options")
        for settings in (recipe.tables.get(table, {}), recipe.override_table(table)):
            given = settings.get(ALTERNATIVES, {})
            named = given.items() if isinstance(given, dict) else [("", given)]
            for name, options in named:
                if not isinstance(options, dict):
                    fix = f"write [{table}.{ALTERNATIVES}.{name or 'NAME'}], then the options of that plugin"
                    where = recipe.where(table, (ALTERNATIVES, name) if name else (ALTERNATIVES,))
                    raise InputError("must be a table", where=where, fix=fix)
    return recipe


def read_tables(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The tables of a recipe file, and the lines of their keys.

    Raises:
        InputError: it is missing or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), key_lines(text)
    except OSError as error:
        reason = "no such recipe" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise InputError(reason, where=str(path), fix=_recipe_near(path)) from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=str(path), fix=_recipe_near(path)) from error
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = re.search(r" \(at line (\d+), column \d+\)", message)
        where = f"{path}:{at[1]}" if at else str(path)
        fix = f"a file of data goes to -o preferences.path={path}" if path.suffix in DATA else "put text in quotes"
        raise InputError(
            message.replace(at[0], "") if at else message, where=where, fix=f"fix the TOML; {fix}"
        ) from error


def _recipe_near(path: Path) -> str:
    """What to give instead of a path that is no recipe."""
    if (path / "recipe.toml").is_file():
        return f"this is a run: give {path / 'recipe.toml'}"
    return closest(path.name, [near.name for near in path.parent.glob("*.toml")], "give the path of a TOML file")


def parse_override(text: str) -> tuple[Key, Any]:
    """(key path, value) of `a.b=c`: the value as TOML, else as a string."""
    dotted, equals, raw = text.partition("=")
    fix = "write table.option=value, as in optimizer.kl_coef=0.05"
    if not equals:
        raise InputError("has no '='", where=f"-o {text}", fix=fix)
    return _key_of(dotted, f"-o {dotted}", fix), _parse_value(raw)


def _key_of(dotted: str, where: str, fix: str) -> Key:
    try:
        key = split_key(dotted)
    except ValueError as error:
        raise InputError(str(error), where=where, fix=fix) from error
    if len(key) < 2:
        raise InputError(f"{dotted!r} is not table.option", where=where, fix=fix)
    return key


def _parse_value(raw: str) -> Any:
    try:
        value = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return raw
    is_plain = value.keys() == {"value"} and isinstance(value["value"], bool | int | float | str | list | dict)
    return value["value"] if is_plain else raw


def _plain(value: Any, where: str) -> Any:
    """A Python value as a recipe holds it: paths as text, functions by name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where} {key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, where) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return name_of_function(value, where=where) if callable(value) and not isinstance(value, type) else value


def _plugin_name(table: str, value: Any) -> str:
    name = _plain(value, table)
    if not isinstance(name, str):
        raise InputError(
            f"{value!r} is neither a plugin name nor a function",
            where=table,
            fix="name a plugin; alignkit.train takes components",
        )
    return name


def _set(table: dict[str, Any], key: Key, value: Any, *, where: str) -> None:
    for part in key[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"another -o sets {part!r} to a value", where=where, fix="remove one of the two")
    table[key[-1]] = value
