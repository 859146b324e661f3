"""Functions that a recipe names as `module:function`. Free of torch; the module itself may import what it likes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError, closest

if TYPE_CHECKING:
    from collections.abc import Callable


def load_function(name: str, *, where: str = "function") -> Callable[..., Any]:
    """The callable behind `module:function` (`package.module:Class.method` too); a class counts as one.

    The current directory is searched first, as `python -m` does.

    Args:
        name: the module's dotted name, a colon, and the name inside it.
        where: the option that holds the name, for the error.

    Raises:
        InputError: the name has another form, the module is missing or fails to import, or holds no such callable.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and all(part.isidentifier() for part in (*module_name.split("."), *attribute.split(".")))):
        raise InputError(
            f"{name!r} names no function", where=where, fix="write module:function, as in my_rewards:politeness"
        )
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    found: Any = _import(module_name, where)
    for part in attribute.split("."):
        known = [key for key in dir(found) if not key.startswith("_") and callable(getattr(found, key))]
        if not hasattr(found, part):
            raise InputError(f"{module_name} has no function {attribute!r}", where=where, fix=closest(part, known))
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{name} is {type(found).__name__}, not a function", where=where, fix="name a function of that module"
        )
    return found  # type: ignore[no-any-return]


def name_of_function(function: Callable[..., Any], *, where: str) -> str:
    """`module:function`, under which `load_function` finds this function.

    Args:
        where: the option that takes it, for the error.

    Raises:
        InputError: nothing finds it by a name, as a lambda or a function inside another one.
    """
    shown = getattr(function, "__qualname__", type(function).__name__)
    name = f"{function.__module__}:{shown}"
    try:
        found = load_function(name, where=where)
    except InputError:
        found = None
    if found != function:
        raise InputError(
            f"a recipe can't name the function {shown}",
            where=where,
            fix="define it with `def` at the top level of a module, a script or a notebook",
        )
    return name


def check_function(name: str, *, where: str = "function") -> None:
    """Raises the InputError that `load_function` would; for `Config.check`."""
    load_function(name, where=where)


def _import(module_name: str, where: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise InputError(f"{module_name} needs the module {missing!r}", where=where, fix="install it") from error
        raise InputError(
            f"there is no module {missing!r}",
            where=where,
            fix=f"put {missing}.py into the current directory or beside the recipe, or install it",
        ) from error
    except Exception as error:
        raise InputError(
            f"importing {module_name} failed: {type(error).__name__}: {error}",
            where=where,
            fix=f'python -c "import {module_name}" shows where',
        ) from error
