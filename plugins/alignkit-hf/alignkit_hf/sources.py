"""Where a model comes from: a folder or a hub id, with the adapters that stand on it; and errors of loading it."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils.hub import cached_file

from alignkit import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Place:
    """A folder or a hub id, and the hub's branch, tag or commit."""

    name: str
    revision: str | None = None

    def file(self, name: str) -> Path | None:
        """The path of a file there, downloaded if need be; None if there is none."""
        found = cached_file(
            self.name,
            name,
            revision=self.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    def record(self, name: str) -> dict[str, Any] | None:
        """The contents of a JSON file there; None if there is none. Raises InputError if it is no JSON object."""
        file = self.file(name)
        if file is None:
            return None
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise InputError(str(error), where=str(file), fix="restore the file") from error
        return record


@dataclass(frozen=True)
class Source:
    """A model, and the adapters that stand on it, lowest first."""

    base: Place
    adapters: tuple[Place, ...] = ()

    @classmethod
    def of(cls, name: str, revision: str | None = None) -> Source:
        """What a name means. Like in transformers, a folder with an adapter's config is an adapter.

        Raises:
            InputError: an adapter names no base, or itself.
        """
        folder = Path(name).expanduser()
        place = Place(str(folder) if folder.is_dir() else name, revision)
        adapters: list[Place] = []
        while (record := place.record(ADAPTER_CONFIG)) is not None:
            base = record.get("base_model_name_or_path")
            if not base or place in adapters:
                what = "stands on itself" if base else "names no base_model_name_or_path"
                raise InputError(
                    f"the adapter {what}", where=f"{place.name}/{ADAPTER_CONFIG}", fix="name the model below it"
                )
            adapters.insert(0, place)
            place = Place(str(base), record.get("revision"))
        return cls(place, tuple(adapters))

    @property
    def with_tokenizer(self) -> Place:
        """The topmost place that has a tokenizer."""
        owners = (place for place in reversed(self.adapters) if place.file("tokenizer_config.json") is not None)
        return next(owners, self.base)


@contextlib.contextmanager
def loading(option: str, name: str) -> Iterator[None]:
    """Turns transformers' errors about a model that can't be loaded into one message."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    library = logging.getLogger("transformers.modeling_utils")
    library.addFilter(_is_no_report)
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "check the folder or the hub id; without a network, download the model first"
        if "contains custom code" in first:
            fix = "read that code, then set trust_remote_code = true"
        raise InputError(f"transformers can't load {name!r}: {first}", where=option, fix=fix) from error
    finally:
        library.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    """Drops the table of missing tensors: they are an error here."""
    return "LOAD REPORT" not in record.getMessage()
