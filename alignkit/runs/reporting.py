"""Progress of a run, on stderr: a bar, plain lines, JSON lines, or nothing.

stdout is for results, so that scripts can read them. Only notebooks, which mark stderr as an error, get it on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from html import escape
from typing import TYPE_CHECKING, Any, TextIO

from alignkit.errors import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.progress import Progress, TaskID

FIGURES = (
    "reward",
    "kl",
    "accuracy",
    "loss",
    "clip_fraction",
    "margin",
    "entropy",
    "tokens_per_s",
    "learning_rate",
    "grad_norm",
)
"""The figures that matter, most important first."""

SHOWN = 5

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.2


def figures_that_matter(record: Mapping[str, float]) -> dict[str, float]:
    """The first SHOWN of FIGURES that the record has."""
    return {name: record[name] for name in [name for name in FIGURES if name in record][:SHOWN]}


def figures_text(record: Mapping[str, float]) -> str:
    """The figures that matter, in one line: `kl 0.12  loss 1.53`."""
    return "  ".join(f"{name} {_short(value)}" for name, value in figures_that_matter(record).items())


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Reporter:
    """Base of all reporters: turns what happens into events. Reports nothing itself."""

    def plan(self, stages: Sequence[tuple[str, str]]) -> None:
        """The planned stages: (name, description)."""
        self._tell("plan", stages=[{"name": name, "text": text} for name, text in stages])

    def stage(self, name: str) -> None:
        """A stage starts."""
        self._tell("stage", name=name)

    def note(self, text: str) -> None:
        """A notice for the user."""
        self._tell("note", text=text)

    def start(self, stage: str, total: int) -> None:
        """Training starts, with `total` planned optimisation steps."""
        self._tell("start", stage=stage, total=total)

    def step(self, record: Mapping[str, float]) -> None:
        """An optimisation step is done; `record` holds `step`, counted from 1, and the figures."""
        self._tell("step", **record)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Training has ended."""
        self._tell("finish", **summary)

    def close(self) -> None:
        """The run has ended, well or not."""

    def _tell(self, event: str, **fields: Any) -> None:
        """Reports an event."""


class JsonReporter(Reporter):
    """One JSON object per line, each with an `event`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _tell(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}, default=str), file=self._stream, flush=True)


class LineReporter(Reporter):
    """Plain lines, a step now and then, for log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage, self._total, self._next_line = "", 0, 0.0

    def plan(self, stages: Sequence[tuple[str, str]]) -> None:
        width = max((len(name) for name, _ in stages), default=0)
        self._say("plan:", *(f"  {number}. {name:<{width}}  {text}" for number, (name, text) in enumerate(stages, 1)))

    def stage(self, name: str) -> None:
        self._say(f"== {name}")

    def note(self, text: str) -> None:
        self._say(text)

    def start(self, stage: str, total: int) -> None:
        self._stage, self._total, self._next_line = stage, total, 0.0

    def step(self, record: Mapping[str, float]) -> None:
        number, now = int(record["step"]), time.monotonic()
        if now >= self._next_line or number >= self._total:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self._say(f"{self._stage} {number}/{self._total}  {figures_text(record)}".rstrip())

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._say(f"{self._stage}: done")

    def _say(self, *lines: str) -> None:
        for line in lines:
            print(visible(line).rstrip(), file=self._stream, flush=True)


class BarReporter(LineReporter):
    """A rich progress bar with the time left and the figures that matter; plain lines for the rest."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, stage: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().start(stage, total)
        self.close()
        left = TimeRemainingColumn(elapsed_when_finished=True)
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), left)
        figures = TextColumn("{task.fields[figures]}", markup=False)
        self._progress = Progress(*columns, figures, console=Console(file=self._stream))
        self._task = self._progress.add_task(stage, total=total, figures="")
        self._progress.start()

    def step(self, record: Mapping[str, float]) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=record["step"], figures=figures_text(record))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say(self, *lines: str) -> None:
        if self._progress is None:
            super()._say(*lines)
        else:
            for line in lines:
                self._progress.console.print(visible(line).rstrip(), markup=False, highlight=False)


class NotebookReporter(LineReporter):
    """A bar in a notebook cell, updated in place; plain lines for the rest.

    It needs only the kernel; rich would need ipywidgets in the kernel and the front end.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._bar: Any = None
        self._last: Mapping[str, float] = {}
        self._first: tuple[int, float] | None = None

    def start(self, stage: str, total: int) -> None:
        from IPython.display import display

        super().start(stage, total)
        self._last, self._first = {}, None
        self._bar = display(self._shown(), raw=True, display_id=True)

    def step(self, record: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._last = record
        self._first = self._first or (int(record["step"]), now)
        if now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_UPDATES
            self._update()

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._update()
            self._bar = None

    def _update(self) -> None:
        self._bar.update(self._shown(), raw=True)

    def _shown(self) -> dict[str, str]:
        """The bar as plain text and as HTML; the front end chooses."""
        number = int(self._last.get("step", 0))
        words = f"{self._stage} {number}/{self._total}"
        told = "  ".join(filter(None, (self._time_left(number), figures_text(self._last))))
        bar = f'<progress value="{number}" max="{self._total}"></progress>'
        html = f'<div>{bar} {escape(words)} <span style="white-space: pre">{escape(told)}</span></div>'
        return {"text/plain": f"{words}  {told}".rstrip(), "text/html": html}

    def _time_left(self, number: int) -> str:
        """The time left, estimated without the first step, which is slow."""
        if self._first is None or number <= self._first[0] or number >= self._total:
            return ""
        step, since = self._first
        seconds = round((time.monotonic() - since) / (number - step) * (self._total - number))
        minutes, seconds = divmod(seconds, 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"


def in_notebook() -> bool:
    """Whether this process is a notebook kernel, where a cell's output can be updated."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def is_first_process() -> bool:
    """Whether this is the only process, or the first of `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def make_reporter(*, quiet: bool = False, json_lines: bool = False, stream: TextIO | None = None) -> Reporter:
    """The reporter for this environment. Only the first process reports; a bar needs a terminal or a notebook."""
    if quiet or not is_first_process():
        return Reporter()
    if stream is None and not json_lines and in_notebook():
        return NotebookReporter(sys.stdout)
    stream = stream or sys.stderr
    if json_lines:
        return JsonReporter(stream)
    return BarReporter(stream) if stream.isatty() else LineReporter(stream)
