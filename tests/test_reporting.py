"""What a run says, in each of its forms."""

from __future__ import annotations

import io
import json
import sys
import types

import pytest

from alignkit.runs import reporting
from alignkit.runs.reporting import (
    BarReporter,
    JsonReporter,
    LineReporter,
    NotebookReporter,
    Reporter,
    figures_text,
    make_reporter,
)

STEPS = [{"step": n, "loss": 1.5, "kl": 0.125, "learning_rate": 1e-5, "tokens_per_s": 12345.6} for n in (1, 2, 3)]


def told_to(reporter: Reporter) -> None:
    reporter.plan([("sft", "on demonstrations"), ("align", "ppo on rollouts")])
    reporter.stage("sft")
    reporter.note("12 groups [red]")
    reporter.start("sft", 3)
    for record in STEPS:
        reporter.step(record)
    reporter.finish({"steps": 3})
    reporter.close()


def test_five_figures_the_most_telling_first() -> None:
    record = {"grad_norm": 1.0, "step": 4, "learning_rate": 1e-5, "loss": 0.5, "reward": 1.25, "kl": 3.0, "x": 9.0}
    assert figures_text(record) == "reward 1.25  kl 3  loss 0.5  learning_rate 1e-05  grad_norm 1"
    assert figures_text({**record, "clip_fraction": 0.1}).endswith("clip_fraction 0.1  learning_rate 1e-05")
    assert figures_text({"tokens_per_s": 12345.6}) == "tokens_per_s 12,346"


def test_json_lines() -> None:
    stream = io.StringIO()
    told_to(JsonReporter(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["plan", "stage", "note", "start", *["step"] * 3, "finish"]
    assert events[0]["stages"][1] == {"name": "align", "text": "ppo on rollouts"}
    assert events[4] == {"event": "step", **STEPS[0]}


def test_plain_lines_now_and_then_and_always_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting.time, "monotonic", lambda: 100.0)
    stream = io.StringIO()
    told_to(LineReporter(stream))
    figures = "kl 0.125  loss 1.5  tokens_per_s 12,346  learning_rate 1e-05"
    assert stream.getvalue().splitlines() == [
        "plan:",
        "  1. sft    on demonstrations",
        "  2. align  ppo on rollouts",
        "== sft",
        "12 groups [red]",
        f"sft 1/3  {figures}",
        f"sft 3/3  {figures}",
        "sft: done",
    ]


def test_bar_ends_at_its_last_step_with_its_figures() -> None:
    stream = io.StringIO()
    told_to(BarReporter(stream))
    assert "12 groups [red]" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert "kl 0.125" in stream.getvalue()


def test_the_reporter_fits_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    assert type(make_reporter(stream=stream)) is LineReporter
    assert type(make_reporter(json_lines=True, stream=stream)) is JsonReporter
    assert type(make_reporter(quiet=True, json_lines=True, stream=stream)) is Reporter
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert type(make_reporter(stream=stream)) is BarReporter
    monkeypatch.setenv("RANK", "1")
    assert type(make_reporter(stream=stream)) is Reporter
    told_to(Reporter())


class Kernel(types.ModuleType):
    """IPython as it is in a notebook's kernel: keeps what a cell shows, and how often it was replaced."""

    def __init__(self) -> None:
        super().__init__("IPython")
        self.display = types.ModuleType("IPython.display")
        self.display.display = self._display  # type: ignore[attr-defined]
        self.kernel: object = self
        self.shown: list[list[dict[str, str]]] = []

    def get_ipython(self) -> Kernel:
        return self

    def _display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Shown:
        assert raw and display_id
        self.shown.append([data])
        return Shown(self.shown[-1])


class Shown:
    """What `display` returns."""

    def __init__(self, versions: list[dict[str, str]]) -> None:
        self._versions = versions

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self._versions.append(data)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", found)
    monkeypatch.setitem(sys.modules, "IPython.display", found.display)
    return found


def test_a_notebook_replaces_its_bar(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([100.0, 104.0, 104.0, 104.1, 104.1])
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(now, 200.0))
    reporter = make_reporter()
    assert type(reporter) is NotebookReporter
    told_to(reporter)
    (versions,) = kernel.shown
    figures = "kl 0.125  loss 1.5  tokens_per_s 12,346  learning_rate 1e-05"
    assert [version["text/plain"] for version in versions] == [
        "sft 0/3",
        f"sft 1/3  {figures}",
        f"sft 2/3  0:00:04 left  {figures}",
        f"sft 3/3  {figures}",
    ]
    assert versions[2]["text/html"].startswith('<div><progress value="2" max="3"></progress> sft 2/3 <span')
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[-2:] == ["== sft", "12 groups [red]"]


def test_a_notebooks_bar_ends_where_the_training_ended_and_is_escaped(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting.time, "monotonic", lambda: 100.0)
    reporter = make_reporter()
    reporter.start("<b>", 9)
    for record in STEPS:
        reporter.step(record)
    reporter.close()
    reporter.close()
    (versions,) = kernel.shown
    assert len(versions) == 3
    assert versions[-1]["text/plain"].startswith("<b> 3/9  0:00:00 left")
    assert "&lt;b&gt; 3/9" in versions[-1]["text/html"]
    assert "<b>" not in versions[-1]["text/html"]


def test_what_only_looks_like_a_notebook(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_reporter(quiet=True)) is Reporter
    assert type(make_reporter(json_lines=True)) is JsonReporter
    assert type(make_reporter(stream=io.StringIO())) is LineReporter
    kernel.kernel = None
    assert type(make_reporter()) is LineReporter
