"""Chooses the plugins and checks the options of a recipe, table by table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignkit.checking import Problem, option_names
from alignkit.errors import InputError, all_of, closest
from alignkit.options import Config, PtxOptions
from alignkit.plugins import Part, Registration, Registry, read_component, read_options, registry, select
from alignkit.recipe.plugin_files import with_files
from alignkit.recipe.recipe import Recipe, load_recipe
from alignkit.recipe.resolved import Resolved
from alignkit.recipe.tables import ALTERNATIVES, DEFAULT_PLUGIN, OPTION_TABLES, ROLE_OF_TABLE, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


def _silent(_: str) -> None:
    """Ignores the notice."""


class TableReader:
    """Reads the tables of a recipe and collects all errors."""

    def __init__(self, recipe: Recipe, registry: Registry) -> None:
        self.recipe, self.registry = recipe, registry
        self.errors: list[InputError] = []
        self.notices: list[str] = []

    def component(self, table: str) -> Part | None:
        """The part of a table with a plugin, or None if it has errors."""
        over = self.recipe.override_table(table)
        below = dict(self.recipe.tables.get(table, {}))
        alternatives = merged(below.pop(ALTERNATIVES, {}), over.pop(ALTERNATIVES, {}))
        stands = below.pop("plugin", DEFAULT_PLUGIN.get(table, ""))
        name = str(over.pop("plugin", None) or self.recipe.flags.get(table) or stands)
        try:
            registration, implied = select(self.registry, ROLE_OF_TABLE[table], name)
        except InputError as error:
            what = error.what if name else f"no {table} plugin is chosen"
            self.errors.append(self.recipe.error(table, Problem(("plugin",), what, error.fix)))
            return None
        if table in self.recipe.tables:
            below = self._without_unknown(table, registration, str(stands), below)
        superseded = [key for name, keys in registration.config.supersedes.items() if over.get(name) for key in keys]
        for key in [key for key in superseded if below.pop(key, None) is not None]:
            self.notices.append(f"{self.recipe.where(table, (key,))}: ignored, because -o sets what supersedes it")
        installed = self.registry.names(ROLE_OF_TABLE[table])
        for other in [other for other in alternatives if other not in installed]:
            where = self.recipe.where(table, (ALTERNATIVES, other))
            self.notices.append(f"{where}: no such plugin is installed; {closest(other, installed)}")
        known = option_names(registration.config)
        compared = alternatives.get(registration.config.compares_with, {})
        borrowed = {key: value for key, value in compared.items() if key in known}
        own = merged(borrowed, alternatives.get(registration.name, {}))
        spec = {"plugin": str(registration), **merged(below, own, implied, over)}
        part, problems = read_component(self.registry, ROLE_OF_TABLE[table], spec)
        self.errors += [self.recipe.error(table, problem, registration.name) for problem in problems]
        return part

    def options(self, table: str) -> Config:
        """The options of one of alignkit's own tables; the defaults if it has errors."""
        given = merged(self.recipe.tables.get(table, {}), self.recipe.override_table(table))
        config, problems = read_options(self.registry, OPTION_TABLES[table], given)
        self.errors += [self.recipe.error(table, problem) for problem in problems]
        return config or OPTION_TABLES[table]()

    def _without_unknown(
        self, table: str, registration: Registration, stands: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        """The recipe's options; if a flag chose another plugin, only those that this plugin has."""
        try:
            if select(self.registry, ROLE_OF_TABLE[table], stands)[0] == registration:
                return options
        except InputError:  # the recipe's own plugin is not installed, and not needed
            pass
        known = option_names(registration.config)
        left_out = [key for key in options if key not in known]
        if left_out:
            self.notices.append(
                f"[{table}] in {self.recipe.path or 'the recipe'} is written for {stands or 'no plugin'}; "
                f"{registration.name} has no {', '.join(left_out)}: ignored"
            )
        return {key: value for key, value in options.items() if key in known}


def resolve(recipe: Recipe, registry: Registry) -> Resolved:
    """Chooses the plugins and checks every option, without heavy imports.

    Raises:
        InputError: lists all errors.
    """
    recipe.extend_import_path()
    reader = TableReader(recipe, registry)
    options: dict[str, Any] = {table: reader.options(table) for table in OPTION_TABLES}
    reader.registry = with_files(registry, options["run"].plugins)
    options["run"] = replace(options["run"], plugins=tuple(reader.registry.files))
    parts = {table: part for table in recipe.component_tables() if (part := reader.component(table))}
    if reader.errors:
        raise all_of(reader.errors)
    options_of_optimizer = parts["optimizer"].config if "optimizer" in parts else None
    if "ptx" in parts and not (isinstance(options_of_optimizer, PtxOptions) and options_of_optimizer.ptx_coef):
        reader.notices.append("[ptx] is ignored: optimizer.ptx_coef is 0, or the algorithm has no such option")
    return Resolved(reader.registry, parts, **options, notices=tuple(reader.notices), by_flag=recipe.by_flag)


def read_recipe(
    path: Path | None, *, flags: Mapping[str, str], overrides: Sequence[str] = (), note: Callable[[str], None] = _silent
) -> Resolved:
    """Reads and checks a file, flags (table -> plugin name) and overrides (`a.b=c`), with the installed plugins.

    Args:
        note: receives notices for the user.

    Raises:
        InputError: lists all errors.
    """
    return checked(load_recipe(path, flags=flags, overrides=overrides), note)


def checked(recipe: Recipe, note: Callable[[str], None] = _silent) -> Resolved:
    """Like `read_recipe`, for a loaded recipe."""
    resolved = resolve(recipe, registry())
    for notice in resolved.notices:
        note(notice)
    return resolved
