"""The files of a run, and the lock that keeps other runs out.

recipe.toml (resolved), run.json (versions, command line, stage summaries), sft/, preferences.jsonl,
reward/, policy/, metrics.jsonl, samples.jsonl, report.html. With rounds also rounds/N/policy and, from the second on,
rounds/N/preferences.jsonl; policy/ is the last round's.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from alignkit.checking import secret_arguments
from alignkit.errors import InputError
from alignkit.files import telling_when_full, write_synced
from alignkit.ops.distributed import process_index
from alignkit.runs.results import read_records, read_state
from alignkit.training.processes import in_first
from alignkit.versions import main_versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STAGE_FILES = {
    "sft": ("sft", "demonstrations.jsonl"),
    "preferences": ("preferences.jsonl",),
    "reward": ("reward",),
    "align": ("policy", "rounds"),
    "eval": ("samples.jsonl", "texts.jsonl", "report.html"),
}
"""The files of each stage; those of a round's stage (`rounds/2/align`) are in the round's folder."""


@dataclass(eq=False)
class RunDir:
    """A locked run directory, used as a context manager. Only the first process writes.

    Args:
        plugins: plugin file -> sha256.
        alone: stages that are run by themselves, in a directory that may hold a run: its recipe stays, and theirs is
            written to STAGE.toml if it is another one. Otherwise all stages of the recipe belong to the run.

    Raises:
        InputError: another run is using it; it is not empty and holds no run; it holds a run, or one of the stages, and
            neither `resume` nor `overwrite` is set; or `resume` is set with another recipe, without `force`. Nothing
            has been changed then.
    """

    path: Path
    _: KW_ONLY
    recipe: str
    digest: str
    resume: bool
    overwrite: bool
    force: bool
    plugins: Mapping[str, str] = field(default_factory=dict)
    alone: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.state: dict[str, Any] = {"stages": {}}
        self._state_file = self.path / "run.json"
        self._lock_descriptor: int | None = None
        in_first(self._begin)
        if not self._state_file.exists():
            what = f"process {process_index()} does not see this folder"
            raise InputError(what, where=str(self.path), fix="choose one that all nodes share")
        self.state = json.loads(self._state_file.read_text(encoding="utf-8"))

    def _begin(self) -> None:
        _check_empty_or_run(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            found = self._state_file.exists()
            if found and not (self.overwrite and not self.alone):
                self.state = read_state(self.path)
            if self.alone:
                self._make_room()
            elif found:
                self._open()
        except BaseException:
            self.__exit__()
            raise
        secret = secret_arguments(sys.argv[1:])
        argv = ["..." if place in secret else argument for place, argument in enumerate(sys.argv[1:])]
        self.state.update(
            argv=argv, versions=main_versions(), python=platform.python_version(), plugins={**self.plugins}
        )
        if not (self.alone and found):
            self.state["digest"] = self.digest
        # run.json first: without it, a folder with a recipe is somebody else's.
        self._write_state()
        if not (self.alone and found):
            write_synced(self.path / "recipe.toml", self.recipe)
        elif self.state["digest"] != self.digest:
            for stage in self.alone:
                write_synced(self.path / f"{stage.replace('/', '-')}.toml", self.recipe)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)

    def _lock(self) -> None:
        self._lock_descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_descriptor)
            raise InputError(
                "another run is using this directory", where=str(self.path), fix="wait, or choose another --out"
            ) from error

    def clear(self, stage: str) -> None:
        """Removes the files of a stage."""
        for path in self._files(stage):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.state["stages"].pop(stage, None)

    def _files(self, stage: str) -> list[Path]:
        folder, _, name = stage.rpartition("/")
        return [self.path / folder / file for file in STAGE_FILES[name]]

    def has_begun(self, stage: str) -> bool:
        """Whether a stage has left any files, done or not."""
        return self.is_done(stage) or any(path.exists() for path in self._files(stage))

    def _make_room(self) -> None:
        """Removes earlier results of the stages if `overwrite` is set; an evaluation stays until a new one ends."""
        again = [] if self.resume else [stage for stage in self.alone if stage != "eval"]
        begun = [stage for stage in again if self.has_begun(stage)]
        if begun and not self.overwrite:
            raise InputError(
                f"stage {begun[0]} has already run here",
                where=str(self.path),
                fix="use --resume, --overwrite or another --out",
            )
        for stage in begun:
            self.clear(stage)

    def _open(self) -> None:
        if self.overwrite:
            for stage in STAGE_FILES:
                self.clear(stage)
            self.state["stages"] = {}
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
        elif not self.resume and not any(map(self.has_begun, STAGE_FILES)):
            self.state = {"stages": {}}  # an earlier start came to nothing
        elif not self.resume:
            raise InputError(
                "this directory holds a run", where=str(self.path), fix="use --resume, --overwrite or another --out"
            )
        elif self.state["digest"] != self.digest and not self.force:
            raise InputError(
                "the recipe has changed since this run started",
                where=str(self.path / "recipe.toml"),
                fix="undo the change, continue with --force, or choose another --out",
            )

    def _write_state(self) -> None:
        write_synced(self._state_file, json.dumps(self.state, indent=1))

    def is_done(self, stage: str) -> bool:
        """Whether the stage is done, in this run or in the resumed one."""
        return stage in self.state["stages"]

    def mark_done(self, stage: str, summary: Mapping[str, Any], seconds: float) -> None:
        """Stores the stage's summary; a resumed run skips the stage."""
        self.state["stages"][stage] = {**summary, "seconds": round(seconds, 2)}
        if process_index() == 0:
            self._write_state()

    def remember(self, name: str, text: str) -> None:
        """Stores a note about a part of the run in run.json."""
        self.state.setdefault("notes", {})[name] = text
        if process_index() == 0:
            self._write_state()

    def summary(self) -> dict[str, Any]:
        """Stage name -> its summary."""
        return dict(self.state["stages"])


def _check_empty_or_run(path: Path) -> None:
    """Refuses a folder with other people's files: a run would replace some of them."""
    if not path.is_dir() or (path / "run.json").exists():
        return
    strangers = sorted(file.name for file in path.iterdir() if file.name != ".lock" and file.suffix != ".partial")
    if strangers:
        raise InputError(
            f"is not empty and holds no run ({', '.join(strangers[:3])})",
            where=f"--out {path}",
            fix="choose a new folder",
        )


class MetricsFile:
    """metrics.jsonl: one record per optimisation step and per alarm. A resumed stage drops the records after its
    checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[str] = set()

    def write(self, stage: str, record: Mapping[str, Any]) -> None:
        """Appends a record; a stage's first record drops older ones from that step on."""
        if stage not in self._seen:
            self._seen.add(stage)
            self._drop(stage, first_step=record["step"])
        line = json.dumps({"stage": stage, "time": round(time.time(), 3), **_rounded(record)}) + "\n"
        with (
            telling_when_full(self._path, self._path.name, lambda: len(line)),
            self._path.open("a", encoding="utf-8") as file,
        ):
            file.write(line)

    def _drop(self, stage: str, first_step: float) -> None:
        if self._path.exists():
            records = read_records(self._path)
            kept = [record for record in records if record["stage"] != stage or record["step"] < first_step]
            write_synced(self._path, "".join(json.dumps(record) + "\n" for record in kept))


def _rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, str | list) else float(f"{value:.6g}") for name, value in record.items()}
