"""The judge that examples/support_judge.py makes, and the recipes that it judges in: rlaif.toml, ai-vs-human.toml."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_judge.rubrics import principles_of
from demo_files import FEW_REWARD_STEPS, FEW_STEPS, make_small_demo

from alignkit import Group, Prompt, cli, read_groups
from alignkit.preferences.annotations import annotations_of

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def support_judge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("support_judge")


@pytest.fixture
def ai_vs_human(support_judge: ModuleType) -> ModuleType:
    return importlib.import_module("ai_vs_human")


def test_each_principle_asks_for_one_thing(support_judge: ModuleType) -> None:
    principles = principles_of(str(EXAMPLES / "constitution.txt"))
    named = [[word for word in support_judge.ASPECTS if word in principle] for principle in principles]
    assert sorted(named) == sorted([word] for word in support_judge.ASPECTS)


def test_ratings_follow_what_is_asked(support_judge: ModuleType) -> None:
    rated = list(support_judge.ratings(600, Random(1)))
    assert all(question.endswith("\nAnswer:") and 1 <= int(score) <= 10 for question, score in rated)
    by_politeness = [
        (int(score), "sorry" in question or "Thank you" in question)
        for question, score in rated
        if "polite and kind" in question
    ]
    assert len(by_politeness) > 60
    kind, other = ([score for score, kind in by_politeness if kind is wanted] for wanted in (True, False))
    assert fmean(kind) > fmean(other) + 1
    beginning, rest = support_judge.cut(*rated[0])
    assert beginning.endswith(" prompt]]\n")
    assert beginning + rest == "".join(rated[0])


def test_agreement_with_gold_counts_ordered_pairs(ai_vs_human: ModuleType) -> None:
    prompt = Prompt.of("", {"intent": "refund", "product": "lamp"})
    rude, kind, empty = "Stop bothering us.", "Thank you for your message.", ""
    right, wrong = Group(prompt, (rude, kind), ranks=(1, 0)), Group(prompt, (empty, kind), ranks=(0, 1))
    tied = Group(prompt, (rude, kind), ranks=(0, 0))
    assert ai_vs_human.agreement_with_gold([right, right, wrong, tied]) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_the_recipes_run_with_a_judge_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, support_judge: ModuleType, ai_vs_human: ModuleType
) -> None:
    """From the empty folder to all rows of the table, with a demo and a judge that take seconds."""
    monkeypatch.chdir(tmp_path)
    make_small_demo(Path("demo"))
    support_judge.make_judge(Path("demo/judge"), ratings_count=2400)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    few = (*FEW_STEPS, *FEW_REWARD_STEPS)
    words = [word for option in few for word in ("-o", option)]
    words += ["-o", "preferences.min_margin=0"]
    assert cli.run(["run", "examples/rlaif.toml", *words, "--out", "runs/rlaif"]) == 0
    judged = list(read_groups(tmp_path / "runs/rlaif/preferences.jsonl"))
    assert {one.annotator for group in judged for one in annotations_of(group)} == {"judge"}
    assert all(0 < group.meta["judge"]["margin"] < 1 for group in judged)
    options = {key: json.loads(value) for key, _, value in (option.partition("=") for option in few)}
    options |= {"preferences.for.judge.min_margin": 0, "preferences.for.mix.budget": 7}
    rows = {row.name: row for row in ai_vs_human.compare(Path("runs/kinds"), options)}
    groups = {name: len(list(read_groups(tmp_path / "runs/kinds" / name / "preferences.jsonl"))) for name in KINDS}
    assert (rows["AI"].judged, rows["AI"].people, rows["AI"].money) == (groups["ai"], 0, 0)
    assert (rows["people"].judged, rows["people"].people) == (0, groups["people"])
    assert (rows["both"].judged, rows["both"].people) == (groups["mixed"], 7)
    assert rows["few people"].judged == 0
    stages: dict[str, Any] = json.loads((tmp_path / "runs/kinds/mixed/run.json").read_text())["stages"]
    assert rows["both"].gold == stages["eval"]["policy"]["gold"]["value"]
    ai_vs_human.show(rows.values())


KINDS = ("ai", "people", "mixed", "few")
