"""Runs programs step by step in turn, A B A B, each in a process of its own, with only one of them computing."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.bench.clock import TURN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass
class Program:
    """A command that takes turns (`clock.Turns`) and prints its figures as its last line.

    Attributes:
        log: where its other output goes.
    """

    command: Sequence[str]
    log: Path
    process: subprocess.Popen[str] = field(init=False)
    live: bool = field(init=False, default=True)

    def start(self) -> None:
        """Starts it; it will load and wait for its first turn."""
        theirs_read, self._write = os.pipe()
        self._read, theirs_write = os.pipe()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=(theirs_read, theirs_write),
                env={**os.environ, TURN_VARIABLE: f"{theirs_read},{theirs_write}"},
            )
        os.close(theirs_read)
        os.close(theirs_write)

    def await_ready(self) -> None:
        """Waits until it asks for a turn, or has ended."""
        self._receive()

    def step(self) -> None:
        """Gives it the turn and waits until it asks for the next one, or has ended."""
        try:
            os.write(self._write, b"G")
        except BrokenPipeError:
            self.live = False
            return
        if self._receive() == b"D":
            self._receive()

    def figures(self) -> dict[str, Any]:
        """What it printed last. Raises RuntimeError where it failed, with the end of its log."""
        output, _ = self.process.communicate()
        os.close(self._read)
        os.close(self._write)
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if self.process.returncode != 0 or not lines:
            said = self.log.read_text().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{' '.join(said[-2:])[:300]} (exit code {self.process.returncode}, see {self.log})")
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def _receive(self) -> bytes:
        said = os.read(self._read, 1)
        self.live = bool(said)
        return said


def take_turns(programs: Sequence[Program]) -> None:
    """Runs all programs to their end, a step of each in turn. They load one after the other."""
    for program in programs:
        program.start()
        program.await_ready()
    while any(program.live for program in programs):
        for program in programs:
            if program.live:
                program.step()
