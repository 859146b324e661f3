"""Checks options: types and ranges by pydantic, then the rules of the class. Imports no torch.

A mistake reads the same in a recipe, in `-o` and in Python; only the location in front of it differs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from alignkit.errors import InputError, PluginError, all_of, closest, describe_error, missing_package

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

    Key = tuple[str, ...]

_SECRET_WORD = (
    r"(?:pass(?:word|wd|phrase)|pwd|secret|bearer|credential|authorization|jwt|pat|(?:api|access|private|secret|signing)"
    r"[-_]?key|(?:api|access|auth|bearer|refresh|session|hub|hf)[-_]?token)s?"
)
_SECRET_NAME = re.compile(rf"(?:^|[-_]){_SECRET_WORD}$", re.IGNORECASE)
_PERHAPS_SECRET_NAME = re.compile(r"(?:^|[-_])(?:key|token|auth|cookie|signature)s?$", re.IGNORECASE)
_RANDOM = re.compile(r"(?=[a-z]*\d+[a-z]+\d)[a-z\d]{10,}|(?=[a-z]*\d)[a-z\d]{16,}|[a-z\d]{20,}", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:[rsp]k[-_][\w-]*?(?:(?=[A-Za-z]*\d)[A-Za-z0-9]{8,}|[A-Za-z0-9]{16,})"
    r"|(?:hf_|gh[oprsu]_|(?:gsk|xai)[-_]|npm_)[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}"
    r"|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|[Bb]earer\s+(?=\S*\d)[\w.~+/=-]{8,})"
    rf"|(?i:(?<![a-z0-9]){_SECRET_WORD}[\"']?\s*=\s*[^\s{{])"
    r"|://[^/\s@:]*:[^/\s@]+@|(?i:https?://[^/\s@]+@)"
    rf"|(?i:://\S*[?&#;](?:[\w.-]*[-_.])?(?:{_SECRET_WORD}|key|token|auth|sig|signature)=[^&\s])"
)
"""What providers' keys look like, tokens in headers, secrets by name (`password=...`), and credentials in URLs."""
NO_SECRETS = "put it into an environment variable; an option such as key_env takes the variable's name"
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One mistake in options: its key path, what is wrong, how to fix it, and whether the option is missing."""

    key: Key
    what: str
    fix: str = ""
    missing: bool = False

    def under(self, *prefix: str) -> Problem:
        """The same problem, with `prefix` before its key."""
        return dataclasses.replace(self, key=(*prefix, *self.key))


class OptionsError(InputError):
    """Wrong options, with all `problems`. With a single problem, `where` is its option; the message names the class
    too."""

    def __init__(self, owner: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        errors = [InputError(p.what, where=f"{owner} {'.'.join(p.key)}".strip(), fix=p.fix) for p in problems]
        told = all_of(errors)
        super().__init__(told.what, where=told.where, fix=told.fix)
        if len(problems) == 1:
            self.where = ".".join(problems[0].key)


def looks_secret(name: str, value: Any) -> bool:
    """Whether the value of an option or argument of this name is a secret: such a value is never shown or stored."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    if _SECRET_NAME.search(name):
        return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    perhaps = _PERHAPS_SECRET_NAME.search(name) and _RANDOM.search(str(value))
    return isinstance(value, str) and bool(perhaps or _SECRET_VALUE.search(value))


def secrets_in(value: Any, key: Key) -> Iterator[Problem]:
    """A problem for each secret in the value of an option, or in a component, list or table inside it."""
    if isinstance(value, Mapping | list | tuple):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from secrets_in(inner, (*key, str(name)))
    elif looks_secret(next((part for part in reversed(key) if not part.isdigit()), ""), value):
        yield Problem(key, "looks like a secret", NO_SECRETS)


def secret_arguments(arguments: Sequence[str]) -> dict[int, str]:
    """The place of each secret on a command line, and its option (`-o reward.api_key`), which may be shown."""
    found = {}
    for place, (before, argument) in enumerate(zip(("", *arguments), arguments, strict=False)):
        option = before if before.startswith("-") else ""
        name, equals, value = argument.partition("=")
        if equals:
            option = f"{option} {name}".strip()
        name = re.split(r"[\s.]", option)[-1].strip("-\"'")
        if looks_secret(name, value if equals else argument) or looks_secret("", argument):
            found[place] = "" if looks_secret("", option) else option
    return found


def option_names(config: type[Any]) -> list[str]:
    """The names of a class's options, in order."""
    return [field.name for field in dataclasses.fields(config) if field.init]


def differing(options: Any, names: Sequence[str]) -> list[str]:
    """The names of those options that differ from their default."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    return [name for name in names if getattr(options, name) != default_of(fields[name])]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """An option's default; dataclasses.MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def check_fields(options: Any) -> None:
    """Checks every field of a dataclass against its annotation and replaces its value by the converted one.

    Raises:
        OptionsError: lists every wrong field.
        PluginError: the annotations can't be used.
    """
    from pydantic import ValidationError

    problems: list[Problem] = []
    config: Any = type(options)
    for name, (adapter, inner) in _adapters(config).items():
        given = getattr(options, name)
        found = [*secrets_in(given, (name,))] or [problem.under(name) for problem in _inside(inner, given)]
        if found:
            problems += found
            continue
        try:
            meant = adapter.validate_python(given)
        except ValidationError as error:
            problems += [problem.under(name) for problem in _told(error.errors(), given)]
        except OptionsError as error:
            problems += [problem.under(name) for problem in error.problems]
        except InputError as error:
            problems.append(Problem((name,), error.what, error.fix))
        else:
            object.__setattr__(options, name, meant)
    if problems:
        raise OptionsError(type(options).__name__, problems)


def check_rules(options: Any) -> None:
    """Calls the class's `check`. Raises OptionsError with what it finds."""
    try:
        options.check()
    except OptionsError:
        raise
    except InputError as error:
        told = OptionsError(type(options).__name__, [_of_rule(error, type(options))])
        told.what, told.where = error.what, error.where
        raise told from error
    except ModuleNotFoundError as error:
        raise missing_package(error, type(options).__name__) from error
    except (ValueError, TypeError, OSError) as error:
        raise OptionsError(type(options).__name__, [Problem((), str(error))]) from error


def unknown(config: type[Any], options: Mapping[str, Any]) -> list[Problem]:
    """A problem for each option that the class does not have."""
    known = option_names(config)
    return [Problem((key,), "no such option", closest(key, known)) for key in options if key not in known]


def missing(config: type[Any], options: Mapping[str, Any]) -> list[Problem]:
    """A problem for each required option that is missing."""
    left_out = [field for field in dataclasses.fields(config) if field.init and field.name not in options]
    required = [field.name for field in left_out if default_of(field) is dataclasses.MISSING]
    return [Problem((name,), "is required", missing=True) for name in required]


def _inside(config: type[Any] | None, given: Any) -> list[Problem]:
    """The problems of options given as a table, or as a list of tables."""
    if config is None or not isinstance(given, Mapping | list | tuple):
        return []
    if not isinstance(given, Mapping):
        return [p.under(str(place)) for place, item in enumerate(given) for p in _inside(config, item)]
    problems = [*unknown(config, given), *missing(config, given)]
    if not problems:
        try:
            config(**given)
        except OptionsError as error:
            return list(error.problems)
    return problems


@cache
def _adapters(config: Any) -> dict[str, tuple[TypeAdapter[Any], type[Any] | None]]:
    """Option -> its validator, and the dataclass that a table for it stands for."""
    from pydantic import ConfigDict, TypeAdapter

    try:
        hints = get_type_hints(config, include_extras=True)
        finite = ConfigDict(allow_inf_nan=False)
        configs = {name: None if dataclasses.is_dataclass(hint) else finite for name, hint in hints.items()}
        return {
            name: (TypeAdapter(hints[name], config=configs[name]), _dataclass_in(hints[name]))
            for name in option_names(config)
        }
    except Exception as error:
        raise PluginError(f"the options class {config.__name__} is broken: {describe_error(error)}") from error


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass in an annotation, alone or in a union."""
    candidates = [candidate for candidate in (hint, *get_args(hint)) if dataclasses.is_dataclass(candidate)]
    return candidates[0] if candidates and isinstance(candidates[0], type) else None


def _told(errors: list[ErrorDetails], given: Any) -> list[Problem]:
    """One problem per key inside an option; the branches of a union are joined."""
    found: dict[Key, list[ErrorDetails]] = {}
    for error in errors:
        found.setdefault(_key_of(error["loc"], given), []).append(error)
    return [Problem(key, _sentence(told), missing=told[0]["type"] == "missing") for key, told in found.items()]


def _key_of(location: tuple[int | str, ...], options: Any) -> Key:
    """The part of pydantic's location that is a key path of the options, without union branches and the like."""
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


def _sentence(errors: list[ErrorDetails]) -> str:
    if errors[0]["type"] == "missing":
        return "is required"
    expected = " or ".join(dict.fromkeys(map(_expectation, errors)))
    return f"{expected}, found {errors[0]['input']!r}"


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


def _of_rule(error: InputError, config: type[Any]) -> Problem:
    """An error raised by `check`; its `where` is an option, maybe with the table's name in front."""
    path = tuple(error.where.split("."))
    names = option_names(config)
    for start in (0, 1):
        if path[start : start + 1] and path[start] in names:
            return Problem(path[start:], error.what, error.fix)
    return Problem((), f"{error.where}: {error.what}" if error.where else error.what, error.fix)
