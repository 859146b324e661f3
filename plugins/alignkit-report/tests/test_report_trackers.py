"""What every sink does around its tool: when it starts and ends, which figures and samples it passes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from accelerate import PartialState
from alignkit_report import TensorBoardOptions
from alignkit_report.sinks import TrackerSink, as_text

from alignkit import Group, Prompt

if TYPE_CHECKING:
    Series = dict[str, list[tuple[int, float]]]


class FakeTracker:
    """A fake of accelerate's trackers."""

    name = "fake"

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[Any] = []
        self._fails = fails

    def start(self) -> None:
        print("a word of welcome")
        self.calls.append("start")
        if self._fails:
            raise ConnectionError("no server")

    def log(self, values: Any, step: int) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


class FakeSink(TrackerSink[TensorBoardOptions]):
    """A sink of a fake tracker."""

    Config = TensorBoardOptions
    tracker = FakeTracker()

    def make(self, ends: Any) -> FakeTracker:
        ends.callback(self.tracker.calls.append, "undone")
        return self.tracker

    def log_table(self, rows: Any, stage: str, step: int) -> None:
        self.tracker.calls.append((stage, step, rows))


@pytest.fixture(autouse=True)
def state_of_accelerate() -> None:
    PartialState(cpu=True)


def test_starts_with_the_first_record_takes_numbers_alone_and_ends_once(capsys: pytest.CaptureFixture[str]) -> None:
    FakeSink.tracker = FakeTracker()
    calls, sink = FakeSink.tracker.calls, FakeSink()
    sink.close()
    assert calls == []
    sink.write({"stage": "rounds/2/policy", "step": 3, "loss": np.float32(0.5), "why": "text", "none": None, "kl": 2})
    sink.write({"stage": "sft", "step": 4, "loss": float("inf")})
    sink.close()
    sink.close()
    first = {"rounds/2/policy/loss": 0.5, "rounds/2/policy/kl": 2.0}
    assert calls == ["start", (3, first), (4, {"sft/loss": float("inf")}), "finish", "undone"]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "a word of welcome\n")


def test_samples_are_rows_with_their_scores() -> None:
    FakeSink.tracker = FakeTracker()
    sink = FakeSink()
    groups = [
        Group(Prompt(text="say"), ("a", "b"), scores=(0.123456, None)),
        Group(Prompt(text="say"), ("c",), source="policy"),
    ]
    sink.write_samples(groups, "policy", 7)
    rows = [["say", "", "a", "0.1235"], ["say", "", "b", ""], ["say", "policy", "c", ""]]
    assert FakeSink.tracker.calls == ["start", ("policy", 7, rows)]
    assert as_text(rows[:2]) == "prompt: say\nresponse: a\nscore: 0.1235\n\nprompt: say\nresponse: b"
    sink.close()


def test_a_tracker_that_cannot_start_leaves_nothing_to_close() -> None:
    FakeSink.tracker = FakeTracker(fails=True)
    sink = FakeSink()
    with pytest.raises(ConnectionError):
        sink.write({"stage": "sft", "step": 1, "loss": 1.0})
    sink.close()
    assert FakeSink.tracker.calls == ["start", "undone"]
