"""Commands as child processes, several at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from alignkit import Interrupted, StopSignals, write_synced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LAST_WORDS = 1200
"""Characters of a failed command's log that are shown."""
MIB = 2**20 if sys.platform == "darwin" else 2**10
"""Units of a MiB in the operating system's peak memory."""


@dataclass(frozen=True)
class Job:
    """A command of alignkit.

    Attributes:
        words: what follows `alignkit` on the command line.
        log: gets what it prints.
        cost: gets the seconds and the memory, in MiB, that it took, at once when it has succeeded: whatever ends this
            process next, a finished run is complete. None: nobody asks.
    """

    name: str
    words: tuple[str, ...]
    log: Path
    cost: Path | None = None


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        code: exit code; negative: the number of the signal that killed it.
        memory: peak of the process, in MiB.
        said: the end of its log, if it failed.
    """

    code: int
    seconds: float
    memory: int
    said: str = ""


class Jobs:
    """Runs jobs, at most `at_once` at a time; each gets its share of the cores.

    A signal to stop is passed on to those that run, which save a checkpoint.
    """

    def __init__(self, at_once: int, note: Callable[[str], None]) -> None:
        self._at_once, self._note = at_once, note
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._signals = StopSignals(self._stop)

    def run(self, jobs: Sequence[Job]) -> list[Ended]:
        """Runs all jobs, and returns how each ended; a failed one doesn't stop the others.

        Raises:
            Interrupted: SIGINT or SIGTERM, after all running jobs have ended.
        """
        counted = partial(self._one, of=len(jobs))
        with self._signals.caught(), ThreadPoolExecutor(self._at_once) as pool:
            ended = list(pool.map(counted, range(1, len(jobs) + 1), jobs))
        if self._signals.number:
            what = f"stopped by {self._signals.name}; finished runs are kept: the same command continues"
            raise Interrupted(self._signals.number, what)
        return ended

    def _one(self, number: int, job: Job, of: int) -> Ended:
        if self._signals.number:
            return Ended(128 + self._signals.number, 0.0, 0)
        start = time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "alignkit", *job.words],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
            with self._lock:
                self._running.add(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            with self._lock:
                self._running.remove(process.pid)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        said = job.log.read_text(encoding="utf-8", errors="replace")[-LAST_WORDS:].strip() if code else ""
        ended = Ended(code, time.monotonic() - start, round(usage.ru_maxrss / MIB), said)
        if job.cost and not code:
            write_synced(job.cost, json.dumps({"seconds": round(ended.seconds, 1), "memory": ended.memory}))
        if not self._signals.number:
            how = f"failed with exit code {code}: {said}" if code else f"done in {ended.seconds:.0f} s"
            self._note(f"{number} of {of}, {job.name}: {how}")
        return ended

    def _environment(self) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self._at_once)
        return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ}

    def _stop(self, name: str) -> None:
        with self._lock:
            running = set(self._running)
        self._note(f"{name}: {len(running)} runs save a checkpoint; repeat to stop at once")
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, self._signals.number)
