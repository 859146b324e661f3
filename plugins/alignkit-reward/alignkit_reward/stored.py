"""The file next to a reward model's weights: how to load the model, and the scale of its scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import HasValues, InputError, may_be_model, registry, write_synced

if TYPE_CHECKING:
    from alignkit import Policy

FILE = "alignkit.json"


@dataclass(frozen=True)
class StoredReward:
    """The contents of `alignkit.json`. A reward model from another tool has no such file and gets the defaults.

    Attributes:
        policy: the policy plugin that made the scorer.
        mean, std: of the raw scores on demonstrations.
        loss: the training loss; empty if unknown.
    """

    policy: str = "hf"
    mean: float = 0.0
    std: float = 1.0
    loss: str = ""

    @classmethod
    def read(cls, folder: Path) -> StoredReward:
        """The file's contents, in a folder or a hub repository. Raises InputError if it is damaged."""
        file = folder / FILE if folder.is_dir() else _from_hub(folder.as_posix())
        if file is None or not file.is_file():
            return cls()
        try:
            stored = cls(**json.loads(file.read_text(encoding="utf-8")))
            if not stored.std > 0:
                raise ValueError(f"std is {stored.std}")
        except (ValueError, TypeError) as error:
            raise InputError(str(error), where=str(file), fix="train the reward model again") from error
        return stored

    def write(self, folder: Path) -> None:
        """Writes the file, whole or not at all."""
        write_synced(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")


def _from_hub(name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    if not may_be_model(name):
        return None
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(name, FILE, **missing)
    return None if found is None else Path(found)


def policy_name(policy: Policy[Any]) -> str:
    """The registered name of a policy's plugin."""
    target = type(policy)
    for found in registry().registrations:
        if found.role == "policy" and found.target in (target, f"{target.__module__}:{target.__qualname__}"):
            return found.name
    return target.__qualname__


def load_policy_class(name: str, where: str) -> type[HasValues]:
    """The policy plugin's class. Raises InputError if it is not installed or has no scorers."""
    try:
        found = registry().load("policy", name)
    except InputError as error:
        raise InputError(f"needs a policy plugin: {error.what}", where=where, fix=error.fix) from error
    if not issubclass(found, HasValues):
        raise InputError(f"the policy plugin {name} has no scorers", where=where, fix="train the reward model again")
    return found
