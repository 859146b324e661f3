"""What a run says, in each of its forms."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from alignkit.runs import reporting
from alignkit.runs.reporting import BarReporter, JsonReporter, LineReporter, Reporter, figures_text, make_reporter

if TYPE_CHECKING:
    import pytest

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
