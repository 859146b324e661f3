"""Rows of a data set on the Hugging Face hub, through `datasets`, which only this module imports."""

from __future__ import annotations

import re
import socket
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from alignkit import InputError
from alignkit_data.readers import Row, choose_split, plain_row

if TYPE_CHECKING:
    from collections.abc import Iterator

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LOCAL = "or set path to a local JSONL, JSON, CSV or Parquet file, or a folder of them"


def is_hub_id(path: str) -> bool:
    """Whether a path that doesn't exist may be a hub data set: `name` or `owner/name`, without a file extension."""
    endings = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".txt")
    return bool(_HUB_ID.fullmatch(path)) and path.strip(".") != "" and not path.lower().endswith(endings)


def hub_rows(name: str, subset: str, split: str) -> Iterator[Row]:
    """The rows of one split.

    Raises:
        InputError: `datasets` is missing, the data set can't be loaded, or has no such split.
    """
    datasets = _datasets(name)
    if not (_is_reachable(datasets.config.HF_ENDPOINT) or _is_cached(name, Path(datasets.config.HF_DATASETS_CACHE))):
        raise _not_had(name, "the hub can't be reached, and no copy is cached")
    splits = _asked(name, lambda: datasets.get_dataset_split_names(name, subset or None))
    chosen = choose_split(split, list(splits), name)
    rows = _asked(name, lambda: datasets.load_dataset(name, subset or None, split=chosen))
    for number, values in enumerate(rows, start=1):
        yield Row(f"{name} ({chosen}), row {number}", plain_row(values))


def _datasets(name: str) -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise InputError(
            f"there is no local file or folder {name!r}, and loading it from the hub needs the package 'datasets'",
            where="path",
            fix=f"pip install 'alignkit-data[hub]', {_LOCAL}",
        ) from error


def _asked(name: str, question: Any) -> Any:
    try:
        return question()
    except Exception as error:  # the hub's client has dozens, from sockets to JSON
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise _not_had(name, reason[0]) from error


def _not_had(name: str, reason: str) -> InputError:
    return InputError(
        f"there is no local file or folder {name!r}, and loading it from the hub failed: {reason}",
        where="path",
        fix=f"check the name and the network, {_LOCAL}",
    )


def _is_reachable(endpoint: str) -> bool:
    """Whether a connection succeeds within two seconds; the hub's client would try for half a minute."""
    if getproxies():
        return True
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=2).close()
    except OSError:
        return False
    return True


def _is_cached(name: str, cache: Path) -> bool:
    """Whether `datasets` has a cached copy; its folders spell the name with other underscores and case."""
    wanted = _letters(name)
    return cache.is_dir() and any(_letters(folder.name) == wanted for folder in cache.iterdir())


def _letters(name: str) -> str:
    return re.sub(r"[/_]", "", name).lower()
