"""Types the commands of a walk-through, one after the other, as a reader would, and plays the people it asks for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from annotators import Annotator, what_prompts_are_about

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BLOCK = re.compile(r"^```(console|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SERVE = "alignkit label serve "


@dataclass(frozen=True)
class Done:
    """A command that was typed, and what it said. `shown`: the lines that the page says come of it."""

    command: str
    code: int
    out: str
    err: str
    shown: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Lines that the page shows and the command didn't say, whatever the figures in them."""
        said = {_shape(line) for line in f"{self.out}\n{self.err}".splitlines()}
        return [line for line in self.shown if _shape(line) not in said]


@dataclass
class Walk:
    """A reader in a folder.

    Args:
        instead: acts for commands that begin so.
        appended: words for commands that begin so.
        patience: how many items each annotator judges in each session of the page; None for all.
    """

    folder: Path
    instead: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    appended: Mapping[str, str] = field(default_factory=dict)
    patience: Iterable[int | None] = ()

    def __post_init__(self) -> None:
        self._patience = iter(self.patience)

    def type(self, command: str, shown: tuple[str, ...] = ()) -> Done:
        """Runs one command to its end; a server until everybody at its page has had enough."""
        for start, act in self.instead.items():
            if command.startswith(start):
                act()
                return Done(command, 0, "", "")
        words = " ".join([command, *(more for start, more in self.appended.items() if command.startswith(start))])
        if command.startswith(SERVE):
            return self._label(words, shown)
        shell = ["bash", "-c", words]
        run = subprocess.run(shell, check=False, cwd=self.folder, env=self._environment, capture_output=True, text=True)
        return Done(command, run.returncode, run.stdout, run.stderr, shown)

    def _label(self, command: str, shown: tuple[str, ...]) -> Done:
        about = what_prompts_are_about(self.folder / "demo/data/prompts.jsonl")
        most = next(self._patience, None)
        with subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            said = ""
            for line in server.stdout:
                said += line
                name, _, link = line.strip().partition(": ")
                if "#token=" not in link:
                    break
                Annotator(name, link, about).work(most)
            server.send_signal(signal.SIGINT)
            return Done(command, server.wait(60), said, "", shown)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def steps(page: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Each command of a page's console blocks, with the lines of the text block after it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for kind, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "console":
            found += [(line, ()) for line in block.replace("\\\n", " ").splitlines()]
        else:
            found[-1] = (found[-1][0], tuple(block.splitlines()))
    return found


def _shape(line: str) -> str:
    return re.sub(r"-?\d+(\.\d+)?", "0", " ".join(line.split()))
