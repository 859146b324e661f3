"""Times steps, takes turns with another program, and measures the peak of memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

TURN_VARIABLE = "ALIGNKIT_BENCH_TURN"


class Turns:
    """This program's end of two pipes: it says when it is ready or done, and waits until it may go on.

    Without pipes (`read` None) it never waits.
    """

    def __init__(self, read: int | None = None, write: int | None = None) -> None:
        self._read, self._write = read, write

    @classmethod
    def from_environment(cls) -> Turns:
        """The pipes that the parent left, if it did."""
        given = os.environ.get(TURN_VARIABLE)
        return cls(*map(int, given.split(","))) if given else cls()

    def take(self) -> None:
        """Waits for the turn."""
        if self._read is not None and self._write is not None:
            os.write(self._write, b"R")
            os.read(self._read, 1)

    def give(self) -> None:
        """Hands the turn on."""
        if self._write is not None:
            os.write(self._write, b"D")


@dataclass
class Clock:
    """Steps of one program.

    Attributes:
        seconds, cpu_seconds: of each step. losses, norms: and of the gradient, of each step where there is one.
        tokens: sampled in each step.
        load_seconds: until the first step, with imports. probe_seconds: of them, for the choice of the layout.
        logprob_diff: of sampled tokens, the largest to a plain forward pass, where that was looked at.
    """

    turns: Turns = field(default_factory=Turns)
    device: str = "cpu"
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    load_seconds: float = 0.0
    probe_seconds: float = 0.0
    logprob_diff: float | None = None
    _started: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """Waits for the turn; a step begins."""
        self.turns.take()
        self._started = self._now()

    def stop(self, loss: float | None = None, tokens: int | None = None) -> None:
        """The step has ended; the turn is handed on."""
        seconds, cpu_seconds = self._now()
        self.seconds.append(seconds - self._started[0])
        self.cpu_seconds.append(cpu_seconds - self._started[1])
        if loss is not None:
            self.losses.append(loss)
        if tokens is not None:
            self.tokens.append(tokens)
        self.turns.give()

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """What happens inside belongs to no step."""
        before = self._now()
        yield
        after = self._now()
        self._started = (self._started[0] + after[0] - before[0], self._started[1] + after[1] - before[1])

    @contextmanager
    def timing_of(self, module: Any, name: str) -> Iterator[None]:
        """Inside, calls of this function of a module count as probing."""
        function = getattr(module, name)

        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*given, **named)
            self.probe_seconds += time.perf_counter() - started
            return result

        setattr(module, name, timed)
        try:
            yield
        finally:
            setattr(module, name, function)

    def figures(self) -> dict[str, Any]:
        """All that was measured, as JSON types."""
        names = ("seconds", "cpu_seconds", "losses", "norms", "tokens", "load_seconds", "probe_seconds",
                 "logprob_diff")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _now(self) -> tuple[float, float]:
        if self.device != "cpu":
            torch.cuda.synchronize()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime + used.ru_stime


class PeakMemory:
    """Peak of memory while it is entered: resident bytes above the start on a CPU, allocated bytes in all on CUDA."""

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._base = self._highest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def bytes(self) -> int:
        """The peak so far."""
        return torch.cuda.max_memory_allocated() if self._cuda else self._highest - self._base

    def __enter__(self) -> PeakMemory:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # what was freed while loading is no memory of a step
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._base = self._highest = self._resident()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._cuda:
            self._stop.set()
            self._thread.join()
            self._highest = max(self._highest, self._resident())

    def _resident(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * self._page

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._highest = max(self._highest, self._resident())
