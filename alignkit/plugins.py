"""Finding plugins: entry points of the group `alignkit`, each loaded and asked on its own.

Free of torch. A plugin that can't be imported, was written for another version of the interface or registers nonsense
is listed as broken, with the reason, and everything else works.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from alignkit import hookspecs
from alignkit.errors import InputError, PluginError, closest
from alignkit.interfaces import (
    INTERFACE_VERSION,
    Component,
    MetricSink,
    Optimizer,
    Policy,
    PreferenceSource,
    RewardSource,
)
from alignkit.options import Config

if TYPE_CHECKING:
    from collections.abc import Iterable

GROUP = "alignkit"
COMMANDS_GROUP = "alignkit.commands"

ROLES: dict[str, type[Component[Any]]] = {
    "policy": Policy,
    "reward": RewardSource,
    "preferences": PreferenceSource,
    "optimizer": Optimizer,
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


def describe_error(error: BaseException) -> str:
    """An exception in one line, with its type."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


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
    version = getattr(module, "ALIGNKIT_INTERFACE", None)
    if version != INTERFACE_VERSION:
        written_for = "declares no ALIGNKIT_INTERFACE" if version is None else f"needs plugin interface {version}"
        raise PluginError(f"{distribution} {written_for}, this alignkit has plugin interface {INTERFACE_VERSION}")
    manager = pluggy.PluginManager("alignkit")
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    collected: list[Registration] = []
    for hook, role in HOOKS.items():

        def register(name: str, target: type[Any] | str, *, config: type[Config], role: str = role) -> None:
            collected.append(_checked(Registration(role, name, target, config, distribution), collected))

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
