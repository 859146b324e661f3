"""Files that are whole or not there, and what is said where the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from alignkit.errors import AlignkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = (
    "No space left",
    "quota exceeded",
    "file write failed",
    "failed writing file",
    "iostream",
    "unexpected pos",
    "database or disk is full",
)
"""What libraries say of a full disk: the system, torch, safetensors, sqlite."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk, whatever the library that writes calls it."""
    return (isinstance(error, OSError) and error.errno in _FULL) or any(map(str(error).__contains__, _SAID))


@contextmanager
def telling_when_full(place: Path, what: str, needed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Says so if the disk is full.

    Args:
        needed: bytes of what is written, if known.

    Raises:
        AlignkitError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        lacking = f"{what} needs {count:,} bytes" if (count := needed()) else f"no space for {what}"
        free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
        raise AlignkitError(
            f"{place}: the disk is full: {lacking}, {free:,} are free; what was saved before is kept\n"
            "  fix: free disk space and type the same command again, for a run with --resume"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file to write, which takes the path's place once all of it is on disk; on an error the old one stays."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_synced(path: Path, text: str) -> None:
    """Writes a file, whole or not at all; it is on disk on return.

    Raises:
        AlignkitError: the disk is full.
    """
    with telling_when_full(path, path.name, lambda: len(text.encode())), replacing(path) as file:
        file.write(text)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
