"""Errors that users see, each with the exit code of the command."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from difflib import get_close_matches
from signal import SIGTERM
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with its control characters, marks that reorder text and halves of surrogate pairs written as escapes
    (`\\x1b`), so that data can't move a terminal's cursor, recolour it or reorder what it shows."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class AlignkitError(Exception):
    """Base class. `exit_code` is what the command line returns."""

    exit_code = 1

    def __str__(self) -> str:
        return visible(super().__str__())


class InputError(AlignkitError):
    """The input is wrong; nothing has started.

    Args:
        what: what is wrong, in one sentence.
        where: the key path, `file:line` or plugin.
        fix: what to do.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(": ".join(part for part in (where, what) if part) + (f"\n  fix: {fix}" if fix else ""))


def all_of(errors: Sequence[InputError]) -> InputError:
    """One error that lists them all."""
    if len(errors) == 1:
        return errors[0]
    return InputError("\n".join([f"{len(errors)} things are wrong:", *map(str, errors)]))


class StoppedByCheck(AlignkitError):  # noqa: N818
    """A check stopped the run: a non-finite loss, a KL limit, a budget. Earlier checkpoints are good."""

    exit_code = 3


class Interrupted(AlignkitError):  # noqa: N818
    """A signal stopped the run, after a checkpoint. The exit code is 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


class PluginError(AlignkitError):
    """A plugin failed, or returned something that its interface does not allow."""


class CheckpointError(AlignkitError):
    """No checkpoint verifies, or the one asked for belongs to another recipe or other data."""


def is_missing_itself(module: str, error: ModuleNotFoundError) -> bool:
    """Whether importing `module` failed because there is no such module, not because it needs another one."""
    return f"{module}.".startswith(f"{error.name}.")


def missing_package(error: ModuleNotFoundError, where: str = "") -> InputError:
    """What to tell someone who lacks a package."""
    package = (error.name or "").partition(".")[0]
    return InputError(
        f"needs the package {package!r}, which is not installed", where=where, fix=f"pip install {package}"
    )


def closest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for a mistyped name: the closest known name, else what `otherwise` says, or all names."""
    options = sorted(known)
    matches = get_close_matches(name, options, n=1)
    if matches:
        return f"did you mean {matches[0]!r}?"
    return otherwise or (f"choose one of: {', '.join(options)}" if options else "none is available")


def wants_traceback() -> bool:
    """Whether the user asks for the tracebacks of errors, also of those that get a message (ALIGNKIT_TRACEBACK=1)."""
    return os.environ.get("ALIGNKIT_TRACEBACK", "") not in ("", "0")


def describe_error(error: BaseException) -> str:
    """The type and message of an exception, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


@contextmanager
def blamed(owner: str, doing: str = "") -> Iterator[None]:
    """Attributes errors to a plugin: whatever is no AlignkitError becomes a PluginError with its name, a call of
    `sys.exit` too (but not the one that SIGTERM stands for)."""
    try:
        yield
    except PluginError as error:
        raise error if owner in str(error) else PluginError(f"{owner}: {error}") from error
    except AlignkitError:
        raise
    except ModuleNotFoundError as error:
        raise missing_package(error, owner) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == 128 + SIGTERM:
            raise
        raise PluginError(f"{' '.join(filter(None, (owner, doing)))}: {describe_error(error)}") from error
