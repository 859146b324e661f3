"""Functions that a recipe names as `module:function`. Imports no torch, though the named module may."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError, closest, is_missing_itself

if TYPE_CHECKING:
    from collections.abc import Callable


def load_function(name: str, *, where: str = "function") -> Callable[..., Any]:
    """Imports the callable `module:function` (also `package.module:Class.method`, or a class).

    Searches the current directory first, like `python -m`.

    Args:
        name: the module's dotted name, a colon, and the name inside it.
        where: the option with the name, for errors.

    Raises:
        InputError: the name has another form, the module is missing or fails to import, or has no such callable.
    """
    module_name, colon, attribute = name.partition(":")
    if module_name.endswith(".py"):
        raise InputError(
            f"{module_name} is a file, not a module",
            where=where,
            fix=f"write {Path(module_name).stem}:{attribute or 'function'}; the file must lie next to the recipe "
            "or in the current directory",
        )
    if not (colon and all(part.isidentifier() for part in (*module_name.split("."), *attribute.split(".")))):
        raise InputError(
            f"{name!r} is not a function", where=where, fix="write module:function, as in my_rewards:politeness"
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
            f"{name} is {type(found).__name__}, not a function", where=where, fix="name a function in that module"
        )
    return found  # type: ignore[no-any-return]


def name_of_function(function: Callable[..., Any], *, where: str) -> str:
    """The name `module:function` under which `load_function` finds this function.

    Args:
        where: the option that takes it, for errors.

    Raises:
        InputError: it can't be found by name, such as a lambda or a nested function.
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
    """Raises what `load_function` raises; for `Config.check`."""
    load_function(name, where=where)


def _import(module_name: str, where: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not is_missing_itself(module_name, error):
            raise InputError(f"{module_name} needs the module {missing!r}", where=where, fix="install it") from error
        raise InputError(
            f"no module {missing!r}",
            where=where,
            fix=f"put {missing}.py in the current directory or next to the recipe, or install it",
        ) from error
    except Exception as error:
        raise InputError(
            f"importing {module_name} failed: {type(error).__name__}: {error}",
            where=where,
            fix=f'run python -c "import {module_name}" to see where',
        ) from error
