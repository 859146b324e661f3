"""report.html of a run: what it says and shows, and that nothing in it is taken for markup."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report import write_page
from alignkit_report.run_report import write_report

from alignkit import Group, Prompt, Run, write_groups

if TYPE_CHECKING:
    from pathlib import Path


def estimate(value: float, half: float = 0.25, n: int = 40) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


EVAL = {
    "on": "40 prompts, 1 of them trained on",
    "prompts": 40,
    "start": {"reward": estimate(0.25), "kl": estimate(-0.0, 0.0), "seen_by_start_only": 1},
    "policy": {"reward": estimate(0.5), "kl": estimate(3.63, 0.1), "finished": 0.75},
    "start, best of 4": {"reward": estimate(1.25)},
    "policy, best of 4": {"reward": estimate(1.5)},
    "win_rate/reward": estimate(0.625, 0.0625),
    "win_rate/reward/policy, best of 4": estimate(0.75),
    "seconds": 9,
}


def texts(cell: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", cell).split())


def rows_of(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    return [[texts(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "<run>"
    path.mkdir()
    (path / "recipe.toml").write_text('name = "<b>"\n[optimizer]\nplugin = "ppo"\n')
    return path


def shown(folder: Path, stages: dict[str, Any]) -> str:
    return write_report(Run(folder, stages=stages)).read_text(encoding="utf-8")


def test_a_run_that_left_nothing_has_a_report(folder: Path) -> None:
    page = shown(folder, {"sft": {"steps": 3}})
    assert "<h1>&lt;run&gt;</h1>" in page
    assert "&lt;b&gt;" in page
    assert not re.search("<run>|<b>|http:|https:", page)
    assert "The policy has not been compared with its start. Done so far: sft." in page
    assert re.findall("<h2>(.*)</h2>", page) == ["Settings"]
    assert rows_of(page) == [["stage", "steps", "tokens", "time"], ["sft", "3", "", ""]]


def test_the_answer_comes_first_and_policies_stand_below_each_other(folder: Path) -> None:
    page = shown(folder, {"sft": {}, "eval": EVAL})
    first = page.partition("<h2>")[0]
    assert "PPO's replies are preferred to SFT's in 62% of 40 comparisons [56, 69]; mean KL 3.6 nats; " in (
        first.replace("\u00a0", " ").replace("\u2019", "'")
    )
    assert "without a gold reward" in first
    assert "on 40 prompts, 1 of them trained on" in first
    assert "-0.0" not in page
    rows = rows_of(page)
    assert rows[:5] == [
        ["policy", "wins over the start by reward", "reward", "KL", "finished"],
        ["SFT", "", "0.2 [0.0, 0.5]", "0.0", ""],
        ["PPO", "62% [56, 69]", "0.5 [0.2, 0.8]", "3.6 [3.5, 3.7]", "75%"],
        ["SFT, best of 4", "", "1.2 [1.0, 1.5]", "", ""],
        ["PPO, best of 4", "75% [50, 100]", "1.5 [1.2, 1.8]", "", ""],
    ]
    assert rows[5:7] == [["policy", "seen by start only"], ["SFT", "1"]]


@pytest.mark.parametrize("on", ["9 unseen prompts", "9 prompts, 2 of them trained on", "prompts of unknown history"])
def test_the_reward_model(folder: Path, on: str) -> None:
    reward = {"accuracy": estimate(0.75), "shorter_wins": estimate(0.5)}
    page = shown(folder, {"reward": reward if "unknown" in on else {**reward, "on": on}})
    assert f"orders as their labels do, on {on}." in page
    assert ["the shorter reply wins", "50% [25, 75]"] in rows_of(page)


def test_samples_stand_side_by_side_where_gold_differs_most_first(folder: Path) -> None:
    groups = []
    for number, gold in enumerate((1.0, 5.0, 3.0)):
        for source, figures in (("start", {"gold": [0.0]}), ("policy", {"gold": [gold]})):
            prompt = Prompt.of([{"role": "user", "content": f"ask {number}"}])
            groups.append(Group(prompt, (f"{source} {number}",), source=source, meta={"figures": figures}))
    write_groups(folder / "samples.jsonl", groups)
    page = shown(folder, {"eval": {**EVAL, "win_rate/gold": estimate(0.9)}})
    assert re.findall('<h3 class="prompt">(.*)</h3>', page) == ["ask 1", "ask 2", "ask 0"]
    assert re.findall(r"<p>((?:start|policy) \d)</p>", page)[:2] == ["start 1", "policy 1"]
    assert "gold 5</div>" in page


def test_curves_by_hand(folder: Path) -> None:
    """The area is 276 wide and 150 high, with its corner at (46, 22)."""
    records = [{"step": step, "kl": kl} for step, kl in [(1, 2.0), (2, 1.5), (5, 1.0)]]
    lines = [json.dumps({"stage": "policy", **record, "unknown": 0, "learning_rate": 1}) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    page = shown(folder, {})
    assert re.findall('polyline points="(.*?)"', page) == ["46.0,22.0 115.0,97.0 322.0,172.0"]
    assert "PPO: KL to the reference" in page
    assert 'nats per reply</text><line x1="46"' in page
    drawn = page[page.index('<svg class="plain"') :].partition("</svg>")[0]
    assert re.findall(r">([\d.]+)</text>", drawn) == ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0", "1", "2", "3", "4", "5"]


def test_alarms_are_no_steps(folder: Path) -> None:
    alarm = {"stage": "<policy>", "step": 7, "alarm": "alarm_kl", "value": 31.0, "threshold": 30.0}
    alarm["text"] = "Too & far."
    step = {"stage": "<policy>", "step": 7, "kl": 2.0}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, (alarm, step))))
    page = shown(folder, {})
    assert "<b>&lt;policy&gt;, before step 7</b>: Too &amp; far." in page
    assert "An alarm fired" in page.partition("<h2")[0]
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
