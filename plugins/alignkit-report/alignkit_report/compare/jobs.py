"""Commands as child processes, several at a time, on this machine or wherever a `Place` runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from alignkit import Interrupted, StopSignals, write_synced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LAST_WORDS = 1200
"""Characters of a failed command's log that are shown."""
MIB = 2**20 if sys.platform == "darwin" else 2**10
"""Units of a MiB in the operating system's account of an ended process."""
SECONDS_BETWEEN_LOOKS = 0.1


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
    seconds: float = 0.0
    memory: int = 0
    said: str = ""


class Place(Protocol):
    """Where jobs run."""

    def run(self, job: Job) -> Ended:
        """Runs a job to its end. Called from several threads at once."""

    def stop(self, number: int) -> int:
        """Passes a signal on to the jobs that run; returns how many these are."""


def execute(job: Job, threads: int, wait: Callable[[int], tuple[int, int]]) -> Ended:
    """Runs a job as a child of this process.

    Args:
        threads: of torch, unless the environment says how many.
        wait: process id -> its exit status and its peak of memory in MiB, once it has ended: `wait_for`.
    """
    start = time.monotonic()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    words = [sys.executable, "-m", "alignkit", *job.words]
    with job.log.open("wb") as log:
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=log, env=environment, start_new_session=True
        )
        status, peak = wait(process.pid)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    said = job.log.read_text(encoding="utf-8", errors="replace")[-LAST_WORDS:].strip() if code else ""
    ended = Ended(code, time.monotonic() - start, peak, said)
    if job.cost and not code:
        write_synced(job.cost, json.dumps({"seconds": round(ended.seconds, 1), "memory": ended.memory}))
    return ended


def wait_for(
    number: int, look: Callable[[], None] = lambda: None, seconds: float = SECONDS_BETWEEN_LOOKS
) -> tuple[int, int]:
    """Waits for a child process, with a look every so many seconds. Returns its exit status and its peak in MiB.

    Linux counts what the parent held at the start as the child's, so it is asked while the child runs.
    """
    peak = 0
    while True:
        peak = max(peak, _peak(number))
        ended, status, used = os.wait4(number, os.WNOHANG)
        if ended:
            return status, peak or round(used.ru_maxrss / MIB)
        look()
        time.sleep(seconds)


def _peak(number: int) -> int:
    """The most memory that a running process has held, in MiB; 0 where the system doesn't say."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{number}/status").read_text(encoding="utf-8")):
            return round(int(found[1]) / 2**10)
    return 0


class ThisMachine:
    """Runs jobs here; each of `at_once` gets its share of the cores."""

    def __init__(self, at_once: int) -> None:
        self._threads = max(1, (os.cpu_count() or 1) // at_once)
        self._running: set[int] = set()
        self._lock = threading.Lock()

    def run(self, job: Job) -> Ended:
        return execute(job, self._threads, self._wait)

    def _wait(self, number: int) -> tuple[int, int]:
        with self._lock:
            self._running.add(number)
        found = wait_for(number)
        with self._lock:
            self._running.remove(number)
        return found

    def stop(self, number: int) -> int:
        with self._lock:
            running = set(self._running)
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        return len(running)


class Jobs:
    """Runs jobs, at most `at_once` at a time. A signal to stop is passed on: those that run save a checkpoint."""

    def __init__(self, at_once: int, note: Callable[[str], None], place: Place | None = None) -> None:
        self._at_once, self._note = at_once, note
        self._place: Place = place or ThisMachine(at_once)
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
            return Ended(128 + self._signals.number)
        ended = self._place.run(job)
        if not self._signals.number:
            failed = f"failed with exit code {ended.code}: {ended.said}"
            self._note(f"{number} of {of}, {job.name}: {failed if ended.code else f'done in {ended.seconds:.0f} s'}")
        return ended

    def _stop(self, name: str) -> None:
        running = self._place.stop(self._signals.number)
        self._note(f"{name}: {running} runs save a checkpoint; repeat to stop at once")
