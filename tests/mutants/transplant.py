"""Puts a mutant in the place of its module in this process: every function keeps its identity and gets other code."""

from __future__ import annotations

import inspect
import sys
from functools import cached_property
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.mutants.mutations import Mutant

SIMPLE = (int, float, bool, str, type(None))


def transplant(mutant: Mutant) -> None:
    """Runs the mutated module aside and gives its code, defaults and constants to the one that is imported."""
    original = sys.modules[mutant.module]
    changed = ModuleType(mutant.module)
    changed.__file__ = original.__file__
    exec(mutant.code, changed.__dict__)
    _copy_constants(vars(original), vars(changed), original)
    theirs = dict(_functions(vars(changed), mutant.module, ""))
    for name, function in _functions(vars(original), mutant.module, ""):
        other = theirs.get(name)
        if other is not None and function.__code__.co_freevars == other.__code__.co_freevars:
            function.__code__ = other.__code__
            function.__defaults__, function.__kwdefaults__ = other.__defaults__, other.__kwdefaults__
    for name, one in vars(original).items():
        if isinstance(one, type) and one.__module__ == mutant.module:
            _copy_constants(vars(one), vars(vars(changed)[name]), one)


def _copy_constants(old: Mapping[str, Any], new: Mapping[str, Any], owner: Any) -> None:
    for name, value in list(old.items()):
        other = new.get(name, value)
        if not name.startswith("__") and isinstance(other, SIMPLE) and other != value:
            setattr(owner, name, other)


def _functions(namespace: Mapping[str, Any], module: str, prefix: str) -> Iterator[tuple[str, FunctionType]]:
    """The functions that a module defines, those of its classes too, by qualified name."""
    for name, value in list(namespace.items()):
        if isinstance(value, type):
            if value.__module__ == module:
                yield from _functions(vars(value), module, f"{prefix}{name}.")
            continue
        plain = _plain(value)
        function = inspect.unwrap(plain) if callable(plain) else plain
        if isinstance(function, FunctionType) and function.__module__ == module:
            yield f"{prefix}{name}", function


def _plain(value: Any) -> Any:
    """What a property, a class method or a static method wraps; other values as they are."""
    if isinstance(value, property):
        return value.fget
    if isinstance(value, cached_property):
        return value.func
    return getattr(value, "__func__", value)
