"""A recipe with chosen plugins and checked options, ready to run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import tomli_w

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.plugins import Part, Registry, build, build_from
from alignkit.recipe.tables import OPTION_TABLES, REWARD_TRAINING, CandidateOptions, EvalOptions, RunOptions
from alignkit.samplers import OwnSampler, Sampler

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.options import ComponentSpec, Config, Sampling, TrainingOptions


@dataclass(frozen=True)
class Resolved:
    """A checked recipe.

    Attributes:
        parts: table -> plugin and options.
        run, sampling, candidates, eval: options of the tables without a plugin.
        notices: what to tell the user about the recipe.
        by_flag: tables that flags or `-o` set.
    """

    registry: Registry
    parts: Mapping[str, Part]
    run: RunOptions
    sampling: Sampling
    candidates: CandidateOptions
    eval: EvalOptions
    notices: tuple[str, ...] = ()
    by_flag: Collection[str] = ()

    def __contains__(self, table: str) -> bool:
        return table in self.parts or (
            table == REWARD_TRAINING and "reward" in self.parts and self.parts["reward"].training is not None
        )

    @property
    def names(self) -> dict[str, str]:
        """Table -> plugin name."""
        return {table: part.registration.name for table, part in self.parts.items()}

    def part(self, table: str) -> Part:
        """The plugin and options of a table, or of "reward.train", the Optimizer that trains the reward.

        Raises:
            InputError: the recipe has no such table.
        """
        part = self.parts["reward"].training if table == REWARD_TRAINING and "reward" in self.parts else None
        part = part or self.parts.get(table)
        if part is None:
            name = table.partition(".")[0]
            raise InputError(
                f"this needs a {name}",
                where="recipe",
                fix=f"add a table [{name}], or an option of it: -o {name}.OPTION=VALUE",
            )
        return part

    def config(self, table: str) -> Any:
        """The options of any table, or of "reward.train"."""
        return getattr(self, table) if table in OPTION_TABLES else self.part(table).config

    def context(self, folder: Path | None = None) -> Context:
        """The context of this run's components, with `folder` for their own files."""
        run, build = self.run, partial(self.build_spec, folder=folder)
        return Context(seed=run.seed, device=run.device, folder=folder, cache=run.cache_folder, build=build)

    def load(self, table: str) -> type[Any]:
        """Imports the class of a table's component."""
        return self.part(table).registration.load()

    def build(self, table: str, *, folder: Path | None = None, saved: Path | None = None, **keywords: Any) -> Any:
        """Imports and builds the component of a table (or of "reward.train").

        Args:
            folder: for the component's own files.
            saved: load the component from this folder, which it or its training wrote.
            keywords: passed to the class, such as an Optimizer's policy and reward.

        Raises:
            PluginError: the plugin raised, or can't be imported.
        """
        return build(self.part(table), self.context(folder), saved=saved, **keywords)

    def sampler(self, folder: Path | None = None) -> Sampler[Any]:
        """The sampler of [sampler], by default the policy itself. The caller closes it."""
        found: Sampler[Any] = self.build("sampler", folder=folder) if "sampler" in self else OwnSampler()
        return found

    def build_spec(self, role: str, spec: ComponentSpec, *, folder: Path | None = None) -> Any:
        """Like `alignkit.build_component`, with this run's plugins and context."""
        return build_from(self.registry, role, spec, self.context(folder))

    def to_toml(self) -> str:
        """The whole recipe with all defaults, enough to repeat this run."""
        return tomli_w.dumps(self._tables((*OPTION_TABLES, *self.parts)))

    @property
    def digest(self) -> str:
        """sha256 of everything that influences the training."""
        return self.digest_of("run", "sampling", "candidates", *self.parts)

    def digest_of(self, *tables: str) -> str:
        """sha256 of the options in these tables that influence results, and of plugin files; missing tables are
        skipped."""
        said = self._tables([table for table in tables if table in self or table in OPTION_TABLES])
        for table, options in said.items():
            for key in self.config(table).noise:
                options.pop(key, None)
        return _sha256([said, sorted(self.registry.files.values())] if self.registry.files else said)

    def _tables(self, tables: Iterable[str]) -> dict[str, dict[str, Any]]:
        result = {}
        for table in tables:
            result[table] = _plain(self.config(table))
            if table not in OPTION_TABLES:
                result[table] = {"plugin": self.registry.spelled(self.part(table).registration), **result[table]}
        return result


def digest_of_training(config: TrainingOptions, *others: Config, **more: Any) -> str:
    """Like `Resolved.digest`, for options made in Python.

    Args:
        config: of the algorithm.
        others: of its policy, its reward, the sampling.
        more: anything else, as JSON types.
    """
    own = {key: value for key, value in _plain(config).items() if key not in config.noise}
    return _sha256([type(config).__name__, own, [[type(other).__name__, _plain(other)] for other in others], more])


def _sha256(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _plain(config: Config) -> dict[str, Any]:
    """Options as TOML types, without unset ones."""
    from pydantic import TypeAdapter

    return cast("dict[str, Any]", _without_nulls(TypeAdapter(type(config)).dump_python(config, mode="json")))


def _without_nulls(value: Any) -> Any:
    """The value without nulls in its tables, which TOML does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value
