"""Finds plugins (entry points of the group `alignkit`), loads each on its own, and builds their components.

Imports no torch. A plugin that fails to import, needs another interface version or registers something invalid is
listed as broken, with the reason; everything else works.
"""

from __future__ import annotations

import inspect
import re
import traceback
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from alignkit import hookspecs
from alignkit.checking import OptionsError, Problem, missing, option_names, unknown
from alignkit.components import Component, Context
from alignkit.errors import (
    InputError,
    PluginError,
    blamed,
    closest,
    describe_error,
    is_missing_itself,
    wants_traceback,
)
from alignkit.interfaces import INTERFACE_VERSION, Algorithm, MetricSink, Policy, PreferenceSource, RewardSource
from alignkit.options import ComponentSpec, Config, specs_of
from alignkit.samplers import OwnSampler, Sampler
from alignkit.versions import CORE, FIRST_PARTY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

GROUP = "alignkit"

ROLES: dict[str, type[Component[Any]]] = {
    "policy": Policy,
    "sampler": Sampler,
    "reward": RewardSource,
    "preferences": PreferenceSource,
    "optimizer": Algorithm,
    "metrics": MetricSink,
}
"""The base class of each role's components."""

HOOKS = {
    "register_policies": "policy",
    "register_samplers": "sampler",
    "register_reward_sources": "reward",
    "register_preference_sources": "preferences",
    "register_optimizers": "optimizer",
    "register_metric_sinks": "metrics",
}
"""The role of the components that each hook registers."""


def normalized(distribution: str) -> str:
    """The name of a distribution, normalised as package indexes do."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@dataclass(frozen=True)
class Registration:
    """A component that a plugin registers.

    Attributes:
        target: the class, or a `"module:Class"` string that is imported when the component is used.
        config: its options class.
        distribution: the installed package that registers it.
    """

    role: str
    name: str
    target: type[Any] | str
    config: type[Config]
    distribution: str

    def __str__(self) -> str:
        return f"{self.distribution}:{self.name}"

    @property
    def owner(self) -> str:
        """The plugin to name when it fails."""
        return f"{self.role} plugin {self}"

    def load(self) -> type[Component[Any]]:
        """Imports the target.

        Raises:
            InputError: it needs a package that is not installed.
            PluginError: it can't be imported, or does not fit its role.
        """
        target = self.target
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            with blamed(self.owner, "can't be loaded"):
                try:
                    target = getattr(import_module(module), attribute)
                except ModuleNotFoundError as error:
                    if is_missing_itself(module, error):
                        raise PluginError(f"there is no module {error.name!r}") from error
                    raise
        base = ROLES[self.role]
        if not (inspect.isclass(target) and issubclass(target, base)):
            raise PluginError(f"{self.owner}: {self.target} is not a subclass of {base.__name__}")
        if self.role == "optimizer" and not hasattr(target, "consumes"):
            raise PluginError(f"{self.owner}: {target.__name__} doesn't say what it `consumes` (a Feed)")
        if not issubclass(self.config, target.Config):
            takes, given = target.Config.__name__, self.config.__name__
            raise PluginError(f"{self.owner}: {target.__name__} takes {takes}, but is registered with {given}")
        return target


@dataclass(frozen=True)
class Broken:
    """An entry point that failed to load, and why."""

    name: str
    distribution: str
    error: str


@dataclass
class Registry:
    """All components of the installed plugins and of plugin files (path -> sha256), by role and name."""

    registrations: list[Registration] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def names(self, role: str) -> list[str]:
        """The sorted names of a role's components; clashing ones as `distribution:name`."""
        names = {self.spelled(one) for r in self._of(role) for one in self._winners(role, r.name)}
        return sorted(names, key=lambda name: (":" in name, name))

    def get(self, role: str, name: str) -> Registration:
        """The component of this name, or of `distribution:name`.

        Raises:
            InputError: there is none, or several third-party plugins use the name.
        """
        if role not in ROLES:
            raise ValueError(f"no role {role!r}; the roles are {', '.join(ROLES)}")
        if ":" in name:
            distribution, _, plugin = name.partition(":")
            found = [r for r in self._of(role) if str(r) in (name, f"{normalized(distribution)}:{plugin}")]
        else:
            found = self._winners(role, name)
        if not found:
            raise InputError(f"no {role} plugin {name!r}", fix=self._suggestion(role, name))
        if len(found) > 1:
            raise InputError(
                f"several packages have a {role} plugin {name!r}: {', '.join(r.distribution for r in found)}",
                fix=f"choose {' or '.join(str(r) for r in found)}",
            )
        return found[0]

    def load(self, role: str, name: str) -> type[Component[Any]]:
        """Imports a component's class. Raises what `get` and `Registration.load` raise."""
        return self.get(role, name).load()

    def spelled(self, registration: Registration) -> str:
        """The shortest name under which `get` finds this component."""
        alone = self._winners(registration.role, registration.name) == [registration]
        return registration.name if alone else str(registration)

    def _of(self, role: str) -> list[Registration]:
        return [r for r in self.registrations if r.role == role]

    def _winners(self, role: str, name: str) -> list[Registration]:
        """The registrations that a bare name may mean: the project's own, else all."""
        found = [r for r in self._of(role) if r.name == name]
        return [r for r in found if r.distribution in (CORE, *FIRST_PARTY)] or found

    def _suggestion(self, role: str, name: str) -> str:
        file = f"--plugin {name} loads the file; here give the name that it registers" if name.endswith(".py") else ""
        hint = closest(name, self.names(role), file)
        if absent := [name for name in FIRST_PARTY if not any(Distribution.discover(name=name))]:
            hint += f" (not installed: {', '.join(absent)})"
        if self.broken:
            hint += f" ({', '.join(b.name for b in self.broken)} failed to load: see `alignkit plugins list`)"
        return hint


NOT_INSTALLED = "install its package or give --plugin FILE; `alignkit plugins list` shows what there is"
"""What to do about a plugin that nobody knows."""


@cache
def registry() -> Registry:
    """The registry of the installed plugins, built once per process. `registry.cache_clear()` rebuilds it."""
    found = discover(entry_points(group=GROUP))
    found.registrations.append(Registration("sampler", "policy", OwnSampler, OwnSampler.Config, CORE))
    return found


def discover(points: Iterable[EntryPoint]) -> Registry:
    """Loads each entry point and calls its hooks; one that fails is listed as broken and registers nothing."""
    found = Registry()
    for point in sorted(points, key=lambda p: p.name):
        distribution = normalized(point.dist.name) if point.dist else point.value
        try:
            found.registrations += registrations_of(point.load(), distribution)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if wants_traceback():
                traceback.print_exception(error)
            reason = str(error) if isinstance(error, PluginError) else describe_error(error)
            found.broken.append(Broken(point.name, distribution, reason))
    return found


def registrations_of(module: object, distribution: str) -> list[Registration]:
    """What one plugin registers, through its own plugin manager.

    Raises:
        PluginError: it registers nothing or something invalid, or needs another interface version.
    """
    version = getattr(module, "ALIGNKIT_INTERFACE", 1)
    if version != INTERFACE_VERSION:
        raise PluginError(f"{distribution} needs plugin interface {version}, but this alignkit has {INTERFACE_VERSION}")
    manager = pluggy.PluginManager("alignkit")
    manager.add_hookspecs(hookspecs)
    for name in [key for key in vars(module) if manager.parse_hookimpl_opts(module, key) and key not in HOOKS]:
        raise PluginError(f"{distribution} has an unknown hook {name!r}: {closest(name, HOOKS)}")
    manager.register(module)
    collected: list[Registration] = []
    for hook, role in HOOKS.items():

        def register(
            name: str, target: type[Any] | str, config: type[Config] | None = None, *, role: str = role
        ) -> None:
            options: Any = config or getattr(target, "Config", Config)
            collected.append(_checked(Registration(role, name, target, options, distribution), collected))

        getattr(manager.hook, hook)(register=register)
    if not collected:
        raise PluginError(
            f"{distribution} registers nothing: the module has no hook with @hookimpl that calls register"
        )
    return collected


def _checked(new: Registration, earlier: list[Registration]) -> Registration:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", str(new.name)):
        raise PluginError(f"{new}: a name may have letters, digits, '-', '_', '+' and '.'")
    if not (inspect.isclass(new.config) and issubclass(new.config, Config)):
        raise PluginError(f"{new}: config must be a subclass of alignkit.Config, found {new.config!r}")
    if not inspect.isclass(new.target) and not re.fullmatch(r"[\w.]+:\w+", str(new.target)):
        raise PluginError(f"{new}: the target must be a class or 'module:Class', found {new.target!r}")
    if any((new.role, new.name) == (r.role, r.name) for r in earlier):
        raise PluginError(f"{new}: registered twice as a {new.role} plugin")
    return new


@dataclass(frozen=True)
class Part:
    """A chosen component with its checked options, and the Optimizer that trains it first, if any."""

    registration: Registration
    config: Config
    training: Part | None = None


def select(registry: Registry, role: str, name: str) -> tuple[Registration, dict[str, str]]:
    """The component that a recipe or flag names, and the option that the name sets.

    `module:function` means the plugin that wraps functions, unless a distribution `module` has that name.

    Raises:
        InputError: no component has this name, or several do.
    """
    module, colon, _ = name.partition(":")
    qualified = any(str(r) == name for r in registry.registrations if r.role == role)
    if colon and not qualified and (module.endswith(".py") or all(part.isidentifier() for part in module.split("."))):
        for known in registry.names(role):
            if option := registry.get(role, known).config.takes_function:
                return registry.get(role, known), {option: name}
    return registry.get(role, name), {}


def read_component(registry: Registry, role: str, spec: ComponentSpec) -> tuple[Part | None, list[Problem]]:
    """The component of a spec, checked with everything nested in it; problems are relative to the spec."""
    options = {key: value for key, value in spec.items() if key != "plugin"}
    try:
        registration, implied = select(registry, role, str(spec.get("plugin", "")))
    except InputError as error:
        what = error.what if spec.get("plugin") else f"needs a {role} plugin"
        return None, [Problem(("plugin",), what, error.fix)]
    with blamed(registration.owner):
        config, problems = read_options(registry, registration.config, {**implied, **options})
    if config is None:
        return None, problems
    training: Part | None = None
    more: list[Problem] = []
    if (wanted := config.training()) is not None:
        training, more = read_component(registry, "optimizer", wanted)
    return Part(registration, config, training), problems + [p.under("train") for p in more]


def read_options(
    registry: Registry, config: type[Config], options: Mapping[str, Any]
) -> tuple[Config | None, list[Problem]]:
    """The options as a checked instance, None if they are malformed, and all problems, nested components included.

    Raises:
        PluginError: the options class itself is broken.
    """
    problems = [*unknown(config, options), *missing(config, options)]
    known = {name: options[name] for name in option_names(config) if name in options}
    if any(problem.missing for problem in problems):
        return None, problems
    try:
        instance = config(**known)
    except OptionsError as error:
        return None, [*problems, *error.problems]
    for key, role, spec in specs_of(instance):
        problems += [p.under(*key.split(".")) for p in read_component(registry, role, spec)[1]]
    return (None if unknown(config, options) else instance), problems


def build(part: Part, context: Context, *, saved: Path | None = None, **keywords: Any) -> Any:
    """Imports and builds the component of a part.

    Args:
        saved: load the component from this folder, which it or its training wrote.
        keywords: passed to the class, such as an Optimizer's policy and reward.

    Raises:
        PluginError: the plugin raised, or can't be imported.
    """
    target: Any = part.registration.load()
    with blamed(part.registration.owner, "could not be started"):
        if saved is not None:
            return target.load(saved, part.config, context)
        return target(part.config, context, **keywords)


def build_component(role: str, spec: ComponentSpec | str, context: Context | None = None, **keywords: Any) -> Any:
    """Checks the options of a spec (`{"plugin": "name", ...}`, or just the name) and builds its component.

    Args:
        context: of the run; `make_context()` by default.
        keywords: passed to the class, such as an Optimizer's policy and reward.

    Raises:
        InputError: the spec names no plugin, or has wrong options.
        PluginError: the plugin raised, or can't be imported.
    """
    return build_from(registry(), role, spec, context or make_context(), **keywords)


def build_from(found: Registry, role: str, spec: ComponentSpec | str, context: Context, **keywords: Any) -> Any:
    """Like `build_component`, with the plugins of a registry."""
    spec = {"plugin": spec} if isinstance(spec, str) else spec
    part, problems = read_component(found, role, spec)
    if part is None or problems:
        raise OptionsError(f"{role} {spec.get('plugin', '')}".strip(), problems)
    return build(part, context, **keywords)


def make_context(
    *, seed: int = 0, device: str = "auto", folder: Path | None = None, cache: Path | None = None
) -> Context:
    """A `Context` for components built outside a run."""

    def build(role: str, spec: ComponentSpec) -> Any:
        return build_component(role, spec, context)

    context = Context(seed, device, folder, cache, build)
    return context
