"""Options of components, checked against their options classes before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from alignkit.errors import InputError, PluginError, closest
from alignkit.plugins import describe_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails

    from alignkit.options import ComponentSpec, Config
    from alignkit.plugins import Registration, Registry

    Key = tuple[str, ...]

_SECRET_WORD = "(?:api_?key|key|token|secret|password|passwd|authorization)"
_SECRET = re.compile(rf"(?:^|[_-]){_SECRET_WORD}$", re.IGNORECASE)
_SECRET_ARGUMENT = re.compile(rf"((?:^|[^a-z0-9]){_SECRET_WORD}[\"']?\s*=).*", re.IGNORECASE | re.DOTALL)
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with options: the key path inside them, what, what to do, whether it is missing."""

    key: Key
    what: str
    fix: str = ""
    missing: bool = False

    def under(self, *prefix: str) -> Problem:
        """The same problem, seen from the options that hold these."""
        return dataclasses.replace(self, key=(*prefix, *self.key))


@dataclass(frozen=True)
class Part:
    """A chosen component with its checked options, and what trains it where it must be trained first."""

    registration: Registration
    config: Config
    training: Part | None = None


def looks_secret(key: str) -> bool:
    """Whether the value under this key must not be shown or stored."""
    return _SECRET.search(key) is not None


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line in which whatever follows the name of a secret (`reward.api_key=`) is cut off."""
    return [_SECRET_ARGUMENT.sub(r"\1...", argument) for argument in arguments]


def option_names(config: type[Config]) -> list[str]:
    """The options of a class, in order."""
    return [field.name for field in dataclasses.fields(config) if field.init]


def select(registry: Registry, role: str, name: str) -> tuple[Registration, dict[str, str]]:
    """The component that a recipe or flag names, and the option that the name implies.

    `module:function` means the plugin `function` with that function, where no distribution offers `module:...`.

    Raises:
        InputError: there is none of this name, or two.
    """
    module, colon, _ = name.partition(":")
    qualified = any(str(r) == name for r in registry.registrations if r.role == role)
    is_function = colon and not qualified and all(part.isidentifier() for part in module.split("."))
    if is_function and "function" in registry.names(role):
        return registry.get(role, "function"), {"function": name}
    return registry.get(role, name), {}


def read_component(registry: Registry, role: str, spec: ComponentSpec) -> tuple[Part | None, list[Problem]]:
    """The component of a spec, everything inside it checked; problems are relative to the spec."""
    options = {key: value for key, value in spec.items() if key != "plugin"}
    try:
        registration, implied = select(registry, role, str(spec.get("plugin", "")))
    except InputError as error:
        what = error.what if spec.get("plugin") else f"names no {role} plugin"
        return None, [Problem(("plugin",), what, error.fix)]
    owner = f"{role} plugin {registration}"
    config, problems = read_options(registry, registration.config, {**implied, **options}, owner=owner)
    if config is None:
        return None, problems
    training, more = _read_training(registry, config)
    return Part(registration, config, training), problems + more


def read_options(
    registry: Registry, config: type[Config], options: Mapping[str, Any], *, owner: str
) -> tuple[Config | None, list[Problem]]:
    """The options as an instance of their class with its own checks and inner components done; None if malformed.

    Raises:
        PluginError: the class itself can't be used; `owner` is named.
    """
    instance, problems = _parse(config, options, owner)
    if instance is None:
        return None, problems
    problems += _own_check(instance)
    for key, role, spec in instance.nested():
        problems += [p.under(*key.split(".")) for p in read_component(registry, role, spec)[1]]
    return instance, problems


def _parse(config: type[Config], options: Mapping[str, Any], owner: str) -> tuple[Config | None, list[Problem]]:
    try:
        unknown = list(_unknown_keys(config, options, ()))
        adapter = TypeAdapter(config)
    except Exception as error:
        raise PluginError(f"{owner}: its options class is unusable: {describe_error(error)}") from error
    try:
        instance = adapter.validate_python(dict(options))
    except ValidationError as error:
        return None, unknown + _problems(error.errors(), options)
    except InputError as error:
        return None, [*unknown, _from_input_error(error, config)]
    return (None, unknown) if unknown else (instance, [])


def _unknown_keys(config: type[Any], options: Mapping[str, Any], prefix: Key) -> Iterable[Problem]:
    known = option_names(config)
    hints = get_type_hints(config)
    for key, value in options.items():
        if key not in known:
            yield Problem((*prefix, key), "no such option", closest(key, known))
        elif isinstance(value, Mapping) and (inner := _dataclass_in(hints[key])):
            yield from _unknown_keys(inner, value, (*prefix, key))


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass that an annotation is, or that its union has."""
    candidates = [candidate for candidate in (hint, *get_args(hint)) if dataclasses.is_dataclass(candidate)]
    return candidates[0] if candidates and isinstance(candidates[0], type) else None


def _problems(errors: list[ErrorDetails], options: Mapping[str, Any]) -> list[Problem]:
    """One problem a key: the branches of a union are told together."""
    found: dict[Key, list[ErrorDetails]] = {}
    for error in errors:
        found.setdefault(_key_of(error["loc"], options), []).append(error)
    return [Problem(key, _sentence(key, told), missing=told[0]["type"] == "missing") for key, told in found.items()]


def _key_of(location: tuple[int | str, ...], options: Any) -> Key:
    """The part of pydantic's location that stands in the options; union branches and the like are left out."""
    key: list[str] = []
    for step in location:
        missing = isinstance(options, Mapping) and step not in options
        if missing and step != location[-1]:
            break
        try:
            options = None if missing else options[step]
        except (KeyError, IndexError, TypeError):
            break
        key.append(str(step))
    return tuple(key)


def _sentence(key: Key, errors: list[ErrorDetails]) -> str:
    if errors[0]["type"] == "missing":
        return "is required and not given"
    expected = " or ".join(dict.fromkeys(map(_expectation, errors)))
    value = "a value that is not shown" if looks_secret(key[-1] if key else "") else repr(errors[0]["input"])
    return f"{expected}, found {value}"


def _expectation(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {context[bound]:g}"
    if kind == "path_type":
        return "must be a path"
    if kind == "dataclass_type":
        return "must be a table of options"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", error["msg"]))
    return error["msg"].replace("Input should be", "must be", 1)


def _own_check(config: Config) -> list[Problem]:
    try:
        config.check()
    except InputError as error:
        return [_from_input_error(error, type(config))]
    except (ValueError, TypeError) as error:
        return [Problem((), str(error))]
    return []


def _from_input_error(error: InputError, config: type[Config]) -> Problem:
    """A class's own complaint; its `where` is an option, perhaps written with the table's name in front."""
    path = tuple(error.where.split("."))
    names = option_names(config)
    for start in (0, 1):
        if path[start : start + 1] and path[start] in names:
            return Problem(path[start:], error.what, error.fix)
    return Problem((), f"{error.where}: {error.what}" if error.where else error.what, error.fix)


def _read_training(registry: Registry, config: Config) -> tuple[Part | None, list[Problem]]:
    """The Optimizer that must train this source first, as `training()` of its options names it."""
    wanted = config.training() if hasattr(config, "training") else None
    if wanted is None:
        return None, []
    name, options = wanted
    part, problems = read_component(registry, "optimizer", {"plugin": name, **options})
    return part, [p.under("train") for p in problems]
