"""Plugins in a file, for experiments without a package: `--plugin FILE`, or `plugins` in the table `run`."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from alignkit.errors import AlignkitError, InputError, describe_error
from alignkit.plugins import Registration, Registry, registrations_of

if TYPE_CHECKING:
    from collections.abc import Iterable


def with_files(found: Registry, files: Iterable[str]) -> Registry:
    """The registry with the components of these files; a file's name stands where a distribution's would.

    Raises:
        InputError: a file is missing, can't be loaded, or registers a name that is taken.
    """
    result = replace(found, registrations=list(found.registrations), files=dict(found.files))
    for file in files:
        path = Path(file).expanduser()
        try:
            source = path.read_bytes()
        except OSError as error:
            what = f"can't be read: {error.strerror}"
            raise InputError(what, where=f"plugin file {file}", fix="give the path of a Python file") from error
        digest = sha256(source).hexdigest()
        if file not in result.files:
            _add(result, _registrations(path.resolve(), source, digest), file)
        result.files[file] = digest
    return result


def _add(found: Registry, new: Iterable[Registration], file: str) -> None:
    for one in new:
        for other in found.registrations:
            if (one.role, one.name) == (other.role, other.name):
                what = f"registers the {one.role} plugin {one.name!r}, which {other.distribution} has"
                raise InputError(what, where=f"plugin file {file}", fix="register another name")
        found.registrations.append(one)


@cache
def _registrations(path: Path, source: bytes, digest: str) -> tuple[Registration, ...]:
    """What the file registers. The same text gives the same classes, a changed one new ones."""
    module = ModuleType(f"{path.stem}_{digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for the names in annotations
    try:
        exec(compile(source, str(path), "exec"), vars(module))
        return tuple(registrations_of(module, path.name))
    except (Exception, SystemExit) as error:
        known = isinstance(error, AlignkitError)
        reason = str(error) if known else describe_error(error)
        fix = f"{'' if known else f'run `python {path}` to see where; '}`alignkit plugins new` writes one that works"
        raise InputError(f"can't be loaded: {reason}", where=f"plugin file {path.name}", fix=fix) from error
