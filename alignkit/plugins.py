"""Finding plugins, entry points of the group `alignkit`, each loaded and asked on its own; building what they offer.

Free of torch. A plugin that can't be imported, was written for another version of the interface or registers nonsense
is listed as broken, with the reason, and everything else works.
"""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

import pluggy

from alignkit import hookspecs
from alignkit.checking import OptionsError, Problem, missing, option_names, unknown
from alignkit.components import Component, Context
from alignkit.errors import AlignkitError, InputError, PluginError, closest, describe_error
from alignkit.interfaces import INTERFACE_VERSION, Algorithm, MetricSink, Policy, PreferenceSource, RewardSource
from alignkit.options import ComponentSpec, Config, specs_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

GROUP = "alignkit"
COMMANDS_GROUP = "alignkit.commands"

ROLES: dict[str, type[Component[Any]]] = {
    "policy": Policy,
    "reward": RewardSource,
    "preferences": PreferenceSource,
    "optimizer": Algorithm,
    "metrics": MetricSink,
}
"""What each role's components must derive from."""

HOOKS = {
    "register_policies": "policy",
    "register_reward_sources": "reward",
    "register_preference_sources": "preferences",
    "register_optimizers": "optimizer",
    "register_metric_sinks": "metrics",
}
"""The role that each hook registers components of."""

FIRST_PARTY = tuple(
    f"alignkit-{name}"
    for name in ("hf", "reward", "ppo", "dpo", "grpo", "data", "clicks", "report", "demo", "judge", "label", "trl")
)  # fmt: skip
"""The project's own distributions: where two plugins use one name, theirs is meant."""


def normalized(distribution: str) -> str:
    """The name of a distribution in the one spelling that package indexes use."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@dataclass(frozen=True)
class Registration:
    """One component that a plugin offers.

    Attributes:
        target: the class, or a `"module:Class"` string that is imported when the component is used.
        config: the class of its options.
        distribution: the installed package that it comes from.
    """

    role: str
    name: str
    target: type[Any] | str
    config: type[Config]
    distribution: str

    def __str__(self) -> str:
        return f"{self.distribution}:{self.name}"

    def load(self) -> type[Component[Any]]:
        """Imports the target.

        Raises:
            InputError: a package that it needs is not installed.
            PluginError: it can't be imported, or is not a component of its role.
        """
        target = self.target
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            try:
                target = getattr(import_module(module), attribute)
            except ModuleNotFoundError as error:
                raise InputError(
                    f"needs the package {error.name!r}, which is not installed",
                    where=f"{self.role} plugin {self}",
                    fix=f"pip install {error.name}",
                ) from error
            except Exception as error:
                raise PluginError(f"{self.role} plugin {self} can't be loaded: {describe_error(error)}") from error
        base = ROLES[self.role]
        if not (inspect.isclass(target) and issubclass(target, base)):
            raise PluginError(f"{self.role} plugin {self}: {self.target} is no subclass of {base.__name__}")
        if not issubclass(self.config, target.Config):
            raise PluginError(
                f"{self.role} plugin {self}: {target.__name__} takes {target.Config.__name__}, but is registered with "
                f"{self.config.__name__}"
            )
        return target


@dataclass(frozen=True)
class Broken:
    """An entry point that can't be used, and why."""

    name: str
    distribution: str
    error: str


@dataclass
class Registry:
    """All components of the installed plugins, by role and name."""

    registrations: list[Registration] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)

    def names(self, role: str) -> list[str]:
        """The sorted names of a role's components; one that clashes is qualified with its distribution."""
        names = {r.name: self._winners(role, r.name) for r in self._of(role)}
        return sorted(name for name, found in names.items() if len(found) == 1) + sorted(
            str(r) for found in names.values() if len(found) > 1 for r in found
        )

    def get(self, role: str, name: str) -> Registration:
        """The component of this name, or of `distribution:name`.

        Raises:
            InputError: there is none, or two strangers use the name.
        """
        if role not in ROLES:
            raise ValueError(f"no role {role!r}, the roles are {', '.join(ROLES)}")
        if ":" in name:
            found = [r for r in self._of(role) if str(r) == _normalized_qualified(name)]
        else:
            found = self._winners(role, name)
        if not found:
            raise InputError(f"no {role} plugin {name!r}", fix=self._suggestion(role, name))
        if len(found) > 1:
            raise InputError(
                f"the {role} plugin {name!r} is offered by {' and '.join(r.distribution for r in found)}",
                fix=f"say which one: {' or '.join(str(r) for r in found)}",
            )
        return found[0]

    def load(self, role: str, name: str) -> type[Component[Any]]:
        """The component's class, imported now. Raises what `get` and `Registration.load` raise."""
        return self.get(role, name).load()

    def spelled(self, registration: Registration) -> str:
        """The shortest name that `get` takes for this component."""
        alone = self._winners(registration.role, registration.name) == [registration]
        return registration.name if alone else str(registration)

    def _of(self, role: str) -> list[Registration]:
        return [r for r in self.registrations if r.role == role]

    def _winners(self, role: str, name: str) -> list[Registration]:
        """The registrations that a bare name may mean: the project's own ones, or else all."""
        found = [r for r in self._of(role) if r.name == name]
        return [r for r in found if r.distribution in FIRST_PARTY] or found

    def _suggestion(self, role: str, name: str) -> str:
        hint = closest(name, self.names(role))
        if self.broken:
            hint += f" ({', '.join(b.name for b in self.broken)} could not be loaded: see `alignkit plugins list`)"
        return hint


def _normalized_qualified(name: str) -> str:
    distribution, _, plugin = name.partition(":")
    return f"{normalized(distribution)}:{plugin}"


@cache
def registry() -> Registry:
    """The registry of what is installed, found once a process. `registry.cache_clear()` looks again."""
    return discover(entry_points(group=GROUP))


def discover(points: Iterable[EntryPoint]) -> Registry:
    """Loads each entry point and asks its hooks; one that fails is listed as broken and registers nothing."""
    found = Registry()
    for point in sorted(points, key=lambda p: p.name):
        distribution = normalized(point.dist.name) if point.dist else point.value
        try:
            found.registrations += _ask(point.load(), distribution)
        except (Exception, SystemExit) as error:
            reason = str(error) if isinstance(error, PluginError) else describe_error(error)
            found.broken.append(Broken(point.name, distribution, reason))
    return found


def _ask(module: object, distribution: str) -> list[Registration]:
    """What one plugin registers, through a plugin manager of its own."""
    version = getattr(module, "ALIGNKIT_INTERFACE", 1)
    if version != INTERFACE_VERSION:
        raise PluginError(
            f"{distribution} needs plugin interface {version}, this alignkit has plugin interface {INTERFACE_VERSION}"
        )
    manager = pluggy.PluginManager("alignkit")
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    collected: list[Registration] = []
    for hook, role in HOOKS.items():

        def register(
            name: str, target: type[Any] | str, config: type[Config] | None = None, *, role: str = role
        ) -> None:
            options: Any = config or getattr(target, "Config", Config)
            collected.append(_checked(Registration(role, name, target, options, distribution), collected))

        getattr(manager.hook, hook)(register=register)
    if not collected:
        raise PluginError(f"{distribution} registers nothing: its entry point must name the module with the hooks")
    return collected


def _checked(new: Registration, earlier: list[Registration]) -> Registration:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", str(new.name)):
        raise PluginError(f"{new}: a name is made of letters, digits, '-', '_', '+' and '.'")
    if not (inspect.isclass(new.config) and issubclass(new.config, Config)):
        raise PluginError(f"{new}: config must be a subclass of alignkit.Config, found {new.config!r}")
    if not inspect.isclass(new.target) and not re.fullmatch(r"[\w.]+:\w+", str(new.target)):
        raise PluginError(f"{new}: the target must be a class or 'module:Class', found {new.target!r}")
    if any((new.role, new.name) == (r.role, r.name) for r in earlier):
        raise PluginError(f"{new}: registered twice as a {new.role} plugin")
    return new


@dataclass(frozen=True)
class Part:
    """A chosen component with its checked options, and what trains it where it must be trained first."""

    registration: Registration
    config: Config
    training: Part | None = None

    @property
    def owner(self) -> str:
        """Whose error it is when this part fails."""
        return f"{self.registration.role} plugin {self.registration}"


def select(registry: Registry, role: str, name: str) -> tuple[Registration, dict[str, str]]:
    """The component that a recipe or flag names, and the option that the name implies.

    `module:function` means the plugin that takes functions, where no distribution offers `module:...`.

    Raises:
        InputError: there is none of this name, or two.
    """
    module, colon, _ = name.partition(":")
    qualified = any(str(r) == name for r in registry.registrations if r.role == role)
    if colon and not qualified and all(part.isidentifier() for part in module.split(".")):
        for known in registry.names(role):
            if option := registry.get(role, known).config.takes_function:
                return registry.get(role, known), {option: name}
    return registry.get(role, name), {}


def read_component(registry: Registry, role: str, spec: ComponentSpec) -> tuple[Part | None, list[Problem]]:
    """The component of a spec, everything inside it checked; problems are relative to the spec."""
    options = {key: value for key, value in spec.items() if key != "plugin"}
    try:
        registration, implied = select(registry, role, str(spec.get("plugin", "")))
    except InputError as error:
        what = error.what if spec.get("plugin") else f"names no {role} plugin"
        return None, [Problem(("plugin",), what, error.fix)]
    with blamed(f"{role} plugin {registration}"):
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
    """The options as a checked instance of their class, and what is wrong inside its components; None if malformed.

    Raises:
        PluginError: the class itself can't be used.
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


@contextmanager
def blamed(owner: str, doing: str = "") -> Iterator[None]:
    """What a plugin raises carries its name: errors of other kinds than alignkit's own become PluginErrors."""
    try:
        yield
    except PluginError as error:
        raise error if owner in str(error) else PluginError(f"{owner}: {error}") from error
    except AlignkitError:
        raise
    except Exception as error:
        raise PluginError(f"{' '.join(filter(None, (owner, doing)))}: {describe_error(error)}") from error


def build(part: Part, context: Context, *, saved: Path | None = None, **keywords: Any) -> Any:
    """The component of a part, its code imported now.

    Args:
        saved: a folder that the component, or what trains it, has written; it is loaded from there.
        keywords: passed to its class, as an Optimizer's policy and reward.

    Raises:
        PluginError: the plugin raised, or can't be imported.
    """
    target: Any = part.registration.load()
    with blamed(part.owner, "could not be started"):
        if saved is not None:
            return target.load(saved, part.config, context)
        return target(part.config, context, **keywords)


def build_component(role: str, spec: ComponentSpec | str, context: Context | None = None, **keywords: Any) -> Any:
    """The component of a spec (`{"plugin": "name", ...}`, or just the name), its options checked first.

    Args:
        context: of the run that it is built for; one that can build further components by default.
        keywords: passed to its class, as an Optimizer's policy and reward.

    Raises:
        InputError: the spec names no plugin, or has wrong options.
        PluginError: the plugin raised, or can't be imported.
    """
    return build_from(registry(), role, spec, context or make_context(), **keywords)


def build_from(found: Registry, role: str, spec: ComponentSpec | str, context: Context, **keywords: Any) -> Any:
    """As `build_component`, from the plugins of a registry."""
    spec = {"plugin": spec} if isinstance(spec, str) else spec
    part, problems = read_component(found, role, spec)
    if part is None or problems:
        raise OptionsError(f"{role} {spec.get('plugin', '')}".strip(), problems)
    return build(part, context, **keywords)


def make_context(
    *, seed: int = 0, device: str = "auto", folder: Path | None = None, cache: Path | None = None
) -> Context:
    """What components may use of a run, where there is none: see `Context`."""
    bare = Context(seed=seed, device=device, folder=folder, cache=cache)
    return replace(bare, build=partial(_build_inside, bare))


def _build_inside(bare: Context, role: str, spec: ComponentSpec) -> Component[Any]:
    return cast("Component[Any]", build_component(role, spec, replace(bare, build=partial(_build_inside, bare))))
