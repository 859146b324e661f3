"""Receivers of metrics are written to and closed by the main process, once, however a run ends; their errors are said
to be theirs."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from pipeline_parts import Recorder
from test_pipeline import resolved

from alignkit.errors import Interrupted, PluginError
from alignkit.interfaces import MetricSink
from alignkit.options import Config
from alignkit.plugins import Registration, Registry
from alignkit.records import Group, read_groups
from alignkit.runs import sinks as sinks_module
from alignkit.runs.results import Run
from alignkit.runs.run import run_recipe
from alignkit.runs.sinks import open_sinks
from alignkit.runs.stages import SHOWN_PROMPTS
from alignkit.testing import TinyReward

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from alignkit.recipe.resolved import Resolved

CALLS: list[tuple[str, Any]] = []


@dataclass(frozen=True, kw_only=True)
class NotedOptions(Config):
    """Options of `noted`."""

    name: str = "a"
    """What it is called in CALLS."""
    fails: str = ""
    """The method that raises."""


class Noted(MetricSink[NotedOptions]):
    """Notes what is done with it."""

    Config = NotedOptions

    def __init__(self, config: NotedOptions, context: Any) -> None:
        super().__init__(config, context)
        self._do("start", context.folder.name)

    def write(self, record: Mapping[str, Any]) -> None:
        self._do("write", dict(record))

    def write_samples(self, groups: Sequence[Group], stage: str, step: int) -> None:
        self._do("samples", (stage, step, groups))

    def close(self) -> None:
        self._do("close", None)

    def _do(self, method: str, value: Any) -> None:
        CALLS.append((f"{self.config.name} {method}", value))
        if method == self.config.fails:
            raise ValueError(f"no {method} today")


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def with_sinks(recipe: Resolved, *specs: Mapping[str, Any]) -> Resolved:
    registration = Registration("metrics", "noted", Noted, NotedOptions, "stranger")
    run = replace(recipe.run, metrics=tuple({"plugin": "noted", **spec} for spec in specs))
    return replace(
        recipe,
        registry=Registry([*recipe.registry.registrations, registration]),
        run=run,
    )


def calls(kind: str) -> list[str]:
    return [name for name, _ in CALLS if name.endswith(kind)]


def test_each_is_given_every_step_and_closed_once(tmp_path: Path) -> None:
    recipe = with_sinks(resolved(tmp_path), {}, {"name": "b"})
    run_recipe(recipe, tmp_path / "out", reporter=Recorder())
    assert CALLS[:2] == [("a start", "out"), ("b start", "out")]
    assert CALLS[-2:] == [("a close", None), ("b close", None)]
    written = [(value["stage"], value["step"]) for name, value in CALLS if name == "b write"]
    assert written == [("sft", step) for step in (1, 2, 3)] + [("policy", step) for step in (1, 2, 3)]
    assert all("loss" in value for name, value in CALLS if name == "a write")
    assert len(CALLS) == 2 + 2 * (6 + 4) + 2


def test_each_is_given_a_group_of_every_batch_and_those_of_the_evaluation(tmp_path: Path) -> None:
    run_recipe(with_sinks(resolved(tmp_path), {}), tmp_path / "out", reporter=Recorder())
    given = [value for name, value in CALLS if name == "a samples"]
    assert [(stage, step, len(groups)) for stage, step, groups in given] == [
        ("policy", 1, 1),
        ("policy", 2, 1),
        ("policy", 3, 1),
        ("eval", 0, 2 * min(SHOWN_PROMPTS, len(list(read_groups(tmp_path / "out" / "samples.jsonl"))) // 2)),
    ]
    reward = TinyReward()
    for _, _, (group,) in given[:3]:
        assert len(group.responses) == 2
        assert group.scores == pytest.approx(reward.score([group])[0], rel=1e-6)
    assert {group.source for group in given[3][2]} == {"start", "policy"}
    events = Run.open(tmp_path / "out").events
    assert [event["planned"] for event in events if "planned" in event] == [3, 3]  # sft, policy
    assert [event["step"] for event in events if "samples" in event] == [1, 2, 3]
    assert all("loss" in record for record in Run.open(tmp_path / "out").metrics)


def test_a_sink_that_cannot_write_ends_the_run_under_its_name(tmp_path: Path) -> None:
    recipe = with_sinks(resolved(tmp_path), {"name": "b"}, {"fails": "write"})
    with pytest.raises(
        PluginError, match=r"run\.metrics\.1: plugin stranger:noted: write\(\) failed: .* no write today"
    ):
        run_recipe(recipe, tmp_path / "out", reporter=Recorder())
    assert calls("close") == ["b close", "a close"]


def test_a_sink_that_cannot_be_closed_is_said_after_the_rest_is_closed_and_the_run_is_done(tmp_path: Path) -> None:
    recorder, recipe = Recorder(), with_sinks(resolved(tmp_path), {"fails": "close"}, {"name": "b", "fails": "close"})
    with pytest.raises(PluginError, match=r"run\.metrics\.0: plugin stranger:noted: close\(\) failed"):
        run_recipe(recipe, tmp_path / "out", reporter=recorder)
    assert calls("close") == ["a close", "b close"]
    assert "run.metrics.1: plugin stranger:noted: close() failed" in recorder.notes[-1]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_failing_close_does_not_hide_what_ended_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(self: TinyReward, groups: Any) -> list[list[float | None]]:
        raise ZeroDivisionError("the reward is gone")

    monkeypatch.setattr(TinyReward, "score", score)
    recorder = Recorder()
    recipe = with_sinks(resolved(tmp_path), {"fails": "close"}, {"name": "b"})
    with pytest.raises(Exception, match="the reward is gone"):
        run_recipe(recipe, tmp_path / "out", reporter=recorder)
    assert calls("close") == ["a close", "b close"]
    assert [note for note in recorder.notes if "stranger:noted: close() failed: ValueError: no close today" in note]


def test_a_sink_that_cannot_start_closes_those_that_have(tmp_path: Path) -> None:
    recipe = with_sinks(resolved(tmp_path), {"name": "b"}, {"fails": "start"})
    with pytest.raises(PluginError, match=r"plugin stranger:noted could not be started: .* no start today"):
        run_recipe(recipe, tmp_path / "out", reporter=Recorder())
    assert [name for name, _ in CALLS] == ["b start", "a start", "b close"]


def test_a_signal_in_training_closes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = TinyReward.score

    def interrupted(self: TinyReward, groups: Any) -> list[list[float | None]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return score(self, groups)

    monkeypatch.setattr(TinyReward, "score", interrupted)
    with pytest.raises(Interrupted):
        run_recipe(with_sinks(resolved(tmp_path), {}), tmp_path / "out", reporter=Recorder())
    assert calls("close") == ["a close"]


@pytest.fixture
def at_rest() -> Iterator[None]:
    meant = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in meant.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("at_rest")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_between_trainings_closes_them(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    with pytest.raises(error) as raised, open_sinks(with_sinks(resolved(tmp_path), {}), tmp_path, print):
        os.kill(os.getpid(), number)
    assert calls("close") == ["a close"]
    assert number == signal.SIGINT or raised.value.args == (143,)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("at_rest")
def test_handlers_of_others_and_other_threads_are_left_alone(tmp_path: Path) -> None:
    recipe, seen = with_sinks(resolved(tmp_path), {}), []

    def look() -> None:
        with open_sinks(recipe, tmp_path, print):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    look()
    assert seen == [signal.SIG_DFL, signal.SIG_IGN]


def test_other_processes_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "process_index", lambda: 1)
    before = signal.getsignal(signal.SIGTERM)
    with open_sinks(with_sinks(resolved(tmp_path), {}), tmp_path, print) as write:
        write({"stage": "sft", "step": 1})
        assert signal.getsignal(signal.SIGTERM) == before
    assert CALLS == []
