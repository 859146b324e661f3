"""The fields of TRL's config classes, read from its source, because importing TRL takes seconds and torch."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import InputError, closest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SIMPLE: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


def check_fields(config: str, given: Mapping[str, Any], ours: Mapping[str, str]) -> None:
    """Checks a user's fields before anything is imported.

    Args:
        config: name of TRL's class.
        given: field -> value.
        ours: fields that follow from our options or tables -> where to set them instead.

    Raises:
        InputError: a field is unknown, belongs elsewhere, or has the wrong type.
    """
    known = config_fields(config)
    for name, value in given.items():
        where = f"args.{name}"
        if name not in known:
            raise InputError(f"{config} has no such field", where=where, fix=closest(name, known))
        if name in ours:
            raise InputError("can't be set here", where=where, fix=f"set {ours[name]}")
        if not _fits(value, known[name]):
            raise InputError(f"must be {known[name]}, found {value!r}", where=where, fix="correct the value")


@cache
def config_fields(config: str) -> dict[str, str]:
    """Field -> its annotation as written, for a TRL config class and its base classes.

    Raises:
        InputError: TRL is not installed or has no such class.
    """
    trl, transformers = _folder("trl"), _folder("transformers")
    files = [*(trl / "trainer").glob("*_config.py"), transformers / "training_args.py"]
    classes = {node.name: node for path in files for node in _classes(path)}
    if config not in classes:
        raise InputError(f"the installed TRL has no {config}", where="args", fix="pip install 'trl>=1.12'")
    return dict(_fields(config, classes))


def _fields(name: str, classes: Mapping[str, ast.ClassDef]) -> Iterator[tuple[str, str]]:
    if name not in classes:
        return
    for base in classes[name].bases:
        yield from _fields(ast.unparse(base), classes)
    for statement in classes[name].body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, ast.unparse(statement.annotation)


def _classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]


def _folder(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise InputError(f"needs the package {package!r}, which is not installed", fix=f"pip install {package}")
    return Path(found.origin).parent


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value fits its annotation; True if the annotation has other than plain types."""
    parts = [part.strip() for part in annotation.split("|")]
    if not set(parts) <= {*_SIMPLE, "None"}:
        return True
    allowed = tuple(kind for part in parts for kind in _SIMPLE.get(part, (type(None),)))
    return isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
