"""report.html: what it shows of a run, and that nothing in it is taken for markup."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report import write_page
from alignkit_report.run_report import SHOWN_SAMPLES, write_report

from alignkit import Group, Prompt, Run, write_groups

if TYPE_CHECKING:
    from pathlib import Path


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.25, "high": value + 0.25, "n": 4}


EVAL = {
    "on": "4 prompts, 1 of them trained on",
    "prompts": 4,
    "start": {"reward": estimate(0.25), "seen_by_start_only": 1},
    "policy": {"reward": estimate(0.5), "finished": 0.75},
    "start, best of 4": {"reward": estimate(1.25)},
    "policy, best of 4": {"reward": estimate(1.5)},
    "win_rate/reward": estimate(0.625),
    "win_rate/reward/policy, best of 4": estimate(0.75),
    "seconds": 9,
}


def rows_of(page: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "<run>"
    path.mkdir()
    (path / "recipe.toml").write_text('name = "<b>"\n')
    return path


def shown(folder: Path, summary: dict[str, Any]) -> str:
    return write_report(Run(folder, stages=summary)).read_text(encoding="utf-8")


def test_a_run_that_left_nothing_has_a_report(folder: Path) -> None:
    page = shown(folder, {"sft": {"steps": 3}})
    assert "<h1>&lt;run&gt;</h1>" in page
    assert "&lt;b&gt;" in page
    assert not re.search("<run>|<b>|http", page)
    assert re.findall("<h2>(.*)</h2>", page) == ["Alarms", "Recipe"]
    assert "<h2>Alarms</h2>\n<p>none</p>" in page
    assert rows_of(page) == [["stage", "seconds", "steps"], ["sft", "", "3"]]


def test_policies_stand_side_by_side_and_win_rates_are_no_policies(folder: Path) -> None:
    page = shown(folder, {"eval": EVAL})
    assert page.count("n 4 prompts, 1 of them trained on") == 2
    rows = rows_of(page)[2:]
    assert rows == [
        ["", "before", "after", "before, best of 4", "after, best of 4"],
        ["reward", "0.250 [0.000, 0.500]", "0.500 [0.250, 0.750]", "1.250 [1.000, 1.500]", "1.500 [1.250, 1.750]"],
        ["finished", "", "0.75", "", ""],
        ["win_rate/reward", "", "0.625 [0.375, 0.875]"],
        ["win_rate/reward/policy, best of 4", "", "0.750 [0.500, 1.000]"],
    ]


@pytest.mark.parametrize("on", ["9 unseen prompts", "9 prompts, 2 of them trained on", "prompts of unknown history"])
def test_the_reward_model(folder: Path, on: str) -> None:
    reward = {"accuracy": estimate(0.75), "shorter_wins": estimate(0.5)}
    page = shown(folder, {"reward": reward if "unknown" in on else {**reward, "on": on}})
    assert f"preferences, on {on}." in page
    assert ["the shorter response wins", "0.500 [0.250, 0.750]"] in rows_of(page)


def test_samples_before_and_after(folder: Path) -> None:
    prompts = [Prompt.of(f"p{number}") for number in range(SHOWN_SAMPLES + 1)]
    groups = [Group(p, (f"{source} 1", "2"), source=source) for p in prompts for source in ("start", "policy")]
    write_groups(folder / "samples.jsonl", groups)
    rows = rows_of(shown(folder, {}))
    assert rows[1:] == [["prompt", "before", "after"]] + [
        [f"p{number}", "start 1", "policy 1"] for number in range(SHOWN_SAMPLES)
    ]


def test_curves_by_hand(folder: Path) -> None:
    """320 wide, 110 high, with 4 above the highest value and below the lowest."""
    records = [{"step": step, "loss": loss, "kl": 1.0} for step, loss in [(1, 2.0), (2, 1.5), (5, 1.0)]]
    lines = [json.dumps({"stage": "<sft>", **record, "unknown": 0}) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    page = shown(folder, {})
    assert re.findall('points="(.*)"', page) == ["0.0,106.0 80.0,106.0 320.0,106.0", "0.0,4.0 80.0,55.0 320.0,106.0"]
    assert "<figcaption>&lt;sft&gt;: loss: 2 to 1 (range 1 to 2)</figcaption>" in page


def test_alarms_are_no_steps(folder: Path) -> None:
    alarm = {
        "stage": "<policy>",
        "step": 7,
        "alarm": "alarm_kl",
        "value": 31.0,
        "threshold": 30.0,
        "text": "Too & far.",
    }
    step = {"stage": "<policy>", "step": 7, "kl": 2.0}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, (alarm, step))))
    page = shown(folder, {})
    assert ["stage", "before step", "alarm"] in rows_of(page)
    assert ["&lt;policy&gt;", "7", "Too &amp; far."] in rows_of(page)
    assert "<p>none</p>" not in page
    run = Run(folder, stages={})
    assert (run.metrics, run.alarms) == ([step], [alarm])


def test_a_plugin_writes_a_page_of_its_own(tmp_path: Path) -> None:
    template = tmp_path / "mine.html"
    template.write_text(
        '{% extends "page.html" %}{% from "tables.html" import table %}'
        '{% block body %}{{ table(("a", "b"), [(text, 1)]) }}{% endblock %}'
    )
    page = write_page(tmp_path / "new" / "page.html", template, title="A <page>", text="<&>").read_text()
    assert "<title>A &lt;page&gt;</title>" in page
    assert '<tr><td>&lt;&amp;&gt;</td><td class="number">1</td></tr>' in page
