"""The stages that the cells of a comparison share: each distinct one runs once, and cells start from copies of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit.commands import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from alignkit.commands import Resolved

TABLES = {
    "sft": ("policy", "demonstrations", "sft"),
    "preferences": ("prompts", "preferences", "sampling", "candidates"),
    "reward": ("reward",),
}
"""Stage -> the tables that it reads beside those of the stages before it, in order."""
LINKED_FROM = 2**20
"""Bytes from which a file is linked, not copied: weights, which nothing writes into again."""


@dataclass(frozen=True)
class SharedStage:
    """A stage with all its inputs.

    Attributes:
        parent: the stage before it, whose folder it starts from.
        digest: of everything that it and the stages before it depend on.
    """

    name: str
    digest: str
    parent: SharedStage | None

    @property
    def folder(self) -> str:
        """Its run directory, below the comparison's `shared`."""
        return f"{self.name}-{self.digest}"


def shared_stages(resolved: Resolved) -> list[SharedStage]:
    """The stages before alignment, in order; their digests don't depend on the algorithm."""
    found: list[SharedStage] = []
    tables = ["run"]
    planned = [stage.name for stage in plan(resolved) if not stage.round]
    # Whether prompts are held out depends on whether there will be any to measure on.
    measured = bool({"prompts", "preferences"} & resolved.names.keys())
    for name, own in TABLES.items():
        tables += own
        if name == "preferences" and name not in resolved.names:
            break  # the first of several rounds samples them, with the algorithm's own settings
        if name in planned:
            before = found[-1].digest if found else ""
            text = f"{before}/{name}/{measured}/{resolved.digest_of(*tables)}"
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            found.append(SharedStage(name, digest, found[-1] if found else None))
    return found


def is_done(run: Path, stage: str) -> bool:
    """Whether a run directory has finished a stage."""
    file = run / "run.json"
    return file.is_file() and stage in json.loads(file.read_text(encoding="utf-8")).get("stages", {})


def start_from(source: Path, folder: Path, digest: str = "", change: Callable[[Path], None] | None = None) -> None:
    """Copies a run directory to one that goes on from it.

    Args:
        digest: of the recipe that goes on; empty keeps the source's.
        change: is called with the copy before it stands in its place.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_linked, ignore=shutil.ignore_patterns(".lock", "checkpoints"))
    if digest:
        state = json.loads((partial / "run.json").read_text(encoding="utf-8"))
        (partial / "run.json").write_text(json.dumps({**state, "digest": digest}, indent=1), encoding="utf-8")
    if change:
        change(partial)
    partial.rename(folder)


def _linked(source: str, target: str) -> None:
    if os.stat(source).st_size >= LINKED_FROM:  # noqa: PTH116 (copytree gives strings)
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copy2(source, target)


def in_levels(chains: Sequence[Sequence[SharedStage]]) -> list[list[SharedStage]]:
    """All distinct stages, those of a level depending only on earlier levels."""
    levels: list[list[SharedStage]] = []
    for chain in chains:
        for depth, stage in enumerate(chain):
            if depth == len(levels):
                levels.append([])
            if stage not in levels[depth]:
                levels[depth].append(stage)
    return levels
