"""Tests in forks of one process that has everything imported, so that a mutant costs the time of its tests alone.

pytest collects once. One fork runs all tests and says which lines of the mutated modules each of them reaches. Then
each mutant has a fork, in which the tests that reach it run, the quick ones first, until one fails.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.mutants.transplant import transplant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from tests.mutants.mutations import Mutant

MORE_MEMORY = 4 * 2**30
PATIENCE, SPARE_SECONDS = 5, 10


@dataclass
class Reached:
    """Of a test: its seconds, and the lines of each file that it reaches."""

    seconds: float
    lines: dict[str, set[int]] = field(default_factory=dict)


class ForkedRuns:
    """A pytest plugin that runs `work` in place of the tests.

    Attributes:
        failed: whether a test has failed in this process.
    """

    def __init__(
        self, files: Sequence[Path], scratch: Path, work: Callable[[ForkedRuns], None], seconds: float
    ) -> None:
        self.files, self.scratch, self.work, self.seconds = {str(file) for file in files}, scratch, work, seconds
        self.failed = ""
        self.items: list[pytest.Item] = []
        self.reached: dict[str, Reached] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("some test module can't be imported")
        self.items = list(session.items)
        self.learn_what_tests_reach()
        gc.freeze()
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid}\n{report.longreprtext[-3000:]}"

    def learn_what_tests_reach(self) -> None:
        """Runs every test once in a fork, and imports here what they have imported there.

        Raises:
            RuntimeError: a test fails without any mutant.
        """
        found = self.scratch / "reached"

        def all_tests() -> None:
            self._run(self.items, self._traced)
            found.write_bytes(pickle.dumps((self.failed, self.reached, list(sys.modules))))

        _in_fork(all_tests, seconds=3600)
        failed, self.reached, modules = pickle.loads(found.read_bytes())
        if failed:
            raise RuntimeError(f"a test fails without any mutant: {failed}")
        for name in modules:
            if name not in sys.modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)

    def survives(self, mutant: Mutant, path: str) -> bool:
        """Whether no test finds the mutant."""
        chosen = self._tests_of(mutant, path)
        limit = PATIENCE * sum(self.reached[item.nodeid].seconds for item in chosen) + SPARE_SECONDS

        def its_tests() -> None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY, size + MORE_MEMORY))
            transplant(mutant)
            self._run(chosen)

        return not chosen or _in_fork(its_tests, seconds=limit, failed=lambda: bool(self.failed)) == 0

    def _tests_of(self, mutant: Mutant, path: str) -> list[pytest.Item]:
        """The tests that reach a mutant, module by module, the quick ones first, as long as there is time."""

        def reaches(item: pytest.Item) -> bool:
            lines = self.reached[item.nodeid].lines.get(path, set())
            return any(line in lines for line in mutant.lines) if mutant.lines else bool(lines)

        chosen = [item for item in self.items if reaches(item)]
        by_module: dict[str, list[float]] = {}
        for item in chosen:
            by_module.setdefault(item.nodeid.split("::")[0], []).append(self.reached[item.nodeid].seconds)
        mean = {name: sum(seconds) / len(seconds) for name, seconds in by_module.items()}
        chosen.sort(key=lambda item: (mean[item.nodeid.split("::")[0]], self.reached[item.nodeid].seconds))
        left, kept = self.seconds, []
        for item in chosen:
            left -= self.reached[item.nodeid].seconds
            if left < 0 and kept:
                break
            kept.append(item)
        return kept

    def _run(self, items: Sequence[pytest.Item], around: Callable[[pytest.Item], Any] = contextlib.nullcontext) -> None:
        for number, item in enumerate(items):
            following = items[number + 1] if number + 1 < len(items) else None
            with around(item):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return

    @contextlib.contextmanager
    def _traced(self, item: pytest.Item) -> Iterator[None]:
        reached = self.reached[item.nodeid] = Reached(0.0)

        def of_call(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename not in self.files:
                return None
            lines = reached.lines.setdefault(frame.f_code.co_filename, set())
            lines.add(frame.f_lineno)

            def of_line(frame: FrameType, event: str, argument: Any) -> Any:
                lines.add(frame.f_lineno)
                return of_line

            return of_line

        start = time.perf_counter()
        sys.settrace(of_call)
        try:
            yield
        finally:
            sys.settrace(None)
            reached.seconds = time.perf_counter() - start


def _in_fork(work: Callable[[], None], *, seconds: float, failed: Callable[[], bool] = lambda: False) -> int:
    """Does the work in a fork without output; 0 where it is done in time, doesn't raise and hasn't `failed`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        work()
        code = int(failed())
    finally:
        os._exit(code)
