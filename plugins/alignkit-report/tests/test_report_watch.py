"""`alignkit watch`: what it says of a run that goes on, from its files alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report.run_view import sparkline, view
from rich.console import Console

from alignkit import Run, cli

if TYPE_CHECKING:
    from pathlib import Path

START = 1000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    sft = {"seconds": 12.4, "steps": 3}
    (path / "run.json").write_text(json.dumps({"stages": {"sft": sft}, "digest": "d"}))
    return path


def record(folder: Path, *records: dict[str, Any]) -> None:
    lines = [json.dumps({"stage": "policy", "time": START, **said}) + "\n" for said in records]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(lines)


def shown(folder: Path, now: float = START) -> str:
    console = Console(width=100)
    with console.capture() as text:
        console.print(view(Run.open(folder), now))
    return text.get()


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        (range(8), 8, "▁▂▃▄▅▆▇█"),
        ([7, 6, 5, 4, 3, 2, 1, 0], 8, "█▇▆▅▄▃▂▁"),
        ([2.0, 2.0], 8, "▁▁"),
        ([0, 0, 0, 14, 7, 7], 3, "▁██"),  # means of neighbours: 0, 7, 7
        ([5], 4, "▁"),
    ],
)
def test_curves(values: Any, width: int, bars: str) -> None:
    assert sparkline([float(value) for value in values], width) == bars


def test_a_run_that_goes_on(folder: Path) -> None:
    record(folder, {"stage": "sft", "step": 3, "loss": 9.0, "time": START - 9})
    record(folder, {"step": 1, "planned": 10, "samples": [{"prompt": "old", "responses": ["older"], "scores": [1.0]}]})
    record(folder, *({"step": step, "kl": step / 2, "loss": -0.0, "time": START + 2 * step} for step in (1, 2, 3)))
    alarm = {"alarm": "alarm_kl", "value": 9.0, "threshold": 3.0, "text": "the KL \x1b[2J is high"}
    sample = {"prompt": "say hi", "responses": ["hi", "ho\x07"], "scores": [0.25, None]}
    record(folder, {"step": 3, **alarm}, {"step": 3, "samples": [sample]})
    text = shown(folder, START + 7)
    assert "sft: done in 12 s" in text
    assert "policy: step 3 of 10, about 14 s left\n" in text  # 7 steps of 2 s
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("kl", "loss"))}
    assert rows == {"kl": ["1.5", "▁▅█", "0.5", "1.5"], "loss": ["0", "▁▁▁", "0", "0"]}
    assert "alarm, step 3: the KL \\x1b[2J is high" in text
    assert text.index("say hi") < text.index("0.25  hi") < text.index("abstained  ho\\x07")
    assert "older" not in text


def test_a_run_without_news(folder: Path) -> None:
    record(folder, {"step": 1, "planned": 3}, {"step": 1, "kl": 1.0}, {"step": 2, "kl": 1.0, "time": START + 1})
    assert "nothing new" not in shown(folder, START + 60)
    assert "step 2 of 3, about 1 s left, nothing new for 3 min" in shown(folder, START + 181)
    record(folder, {"step": 3, "kl": 1.0, "time": START + 2})
    assert "policy: step 3 of 3\n" in shown(folder, START + 9999)


def test_a_run_that_has_trained_nothing_yet(folder: Path) -> None:
    assert "no step is done yet" in shown(folder)
    record(folder, {"step": 1, "planned": 3})
    assert "no step is done yet" in shown(folder)


def test_the_command_prints_once_where_there_is_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(folder, {"step": 1, "kl": 1.0})
    assert cli.run(["watch", str(folder)]) == 0
    assert "policy: step 1" in capsys.readouterr().out
    assert cli.run(["watch", str(folder.parent)]) == 2
    assert "holds no run" in capsys.readouterr().err
