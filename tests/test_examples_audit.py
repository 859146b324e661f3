"""examples/check-a-judge.md is typed as it stands; its audit finds how often the judge is right, as the world knows."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alignkit_demo import demo
from alignkit_demo.data import Sizes, write_data
from alignkit_demo.world import gold
from test_examples_label import ENDED
from walkthrough import SERVE, Walk, steps

import alignkit
from alignkit import read_groups
from alignkit.runs.reporting import Reporter

if TYPE_CHECKING:
    from alignkit import Group

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = EXAMPLES / "check-a-judge.md"
FEW = "-o prompts.limit=300 -o eval.prompts.limit=32 -o optimizer.for.ppo.iterations=3"


def make_sft(folder: Path) -> None:
    """The files of `alignkit demo` up to its SFT policy, at full size."""
    write_data(folder / "data", Sizes(), seed=0)
    demo.make_untrained_model(folder, seed=0)
    demo.write_recipes(folder, seed=0)
    demo.run_recipe(demo.resolve(folder, "pretraining"), folder / "pretraining", reporter=Reporter())
    alignkit.run(folder / "recipe.toml", stages="sft", out=folder / "ppo")


def pairs_of(groups: list[Group]) -> list[tuple[Group, int, int]]:
    """Every two different responses that the judge ranked, the one it prefers first."""
    found = []
    for group in groups:
        ranks = group.ranks or ()
        for i, j in combinations(range(len(ranks)), 2):
            if group.responses[i] != group.responses[j]:
                found.append((group, i, j) if ranks[i] <= ranks[j] else (group, j, i))
    return found


def right(pair: tuple[Group, int, int]) -> float:
    """1 if the true reward has the order of the judge, 0.5 if it has none."""
    group, better, worse = pair
    first, second = (gold(group.prompt, group.responses[k]) for k in (better, worse))
    return 0.5 * ((first > second) + (first >= second))


def agrees(pair: tuple[Group, int, int]) -> float:
    """The probability that one of the world's people has the order of the judge: Bradley-Terry on the true reward
    divided by 0.7, plus 0.03 a word, by which people like long replies better. People never tie."""
    group, better, worse = pair
    assert group.ranks is not None
    if group.ranks[better] == group.ranks[worse]:
        return 0.0
    first, second = (
        gold(group.prompt, text) / 0.7 + 0.03 * len(text.split())
        for text in (group.responses[better], group.responses[worse])
    )
    return 1 / (1 + math.exp(second - first))


def test_the_page_is_short_and_audits_what_it_makes() -> None:
    commands = [command for command, _ in steps(PAGE)]
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 60
    assert commands[0] == "alignkit demo --out demo"
    assert "alignkit label audit runs/rlaif --n 100" in commands
    assert commands[-1] == "alignkit preferences report runs/rlaif"


@pytest.mark.slow
def test_an_audit_of_100_pairs_finds_how_often_the_judge_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    instead = {"alignkit demo": lambda: make_sft(Path("demo"))}
    walk = Walk(tmp_path, instead, {"alignkit run": FEW, SERVE: "--port 0"}, (None,))
    for command, shown in steps(PAGE):
        done = walk.type(command, shown)
        assert done.code in (ENDED if command.startswith(SERVE) else (0,)), done
        assert not done.missing, done
        if command.startswith("alignkit run"):
            assert "which is no accuracy" in done.out + done.err
    run = tmp_path / "runs/rlaif"
    reward = json.loads((run / "run.json").read_text())["stages"]["reward"]
    assert "accuracy" not in reward
    assert 0.6 < reward["agreement_with_ai"]["value"] < 1
    page = (run / "report.html").read_text()
    assert ">agreement with the AI</th>" in page
    assert set(re.findall(r"(\w+) accuracy", page.partition("Recipe, with")[0])) == {"no"}
    groups = list(read_groups(run / "preferences.jsonl"))
    pairs = pairs_of(groups)
    report = walk.type("alignkit preferences report runs/rlaif --json")
    audit = json.loads(report.out)["audit"]
    assert (audit["drawn"], audit["pairs"], audit["people_agree"]["n"]) == (100, 100, 100)
    decided = [(group, i, j) for group, i, j in pairs if group.ranks and group.ranks[i] != group.ranks[j]]
    alike, alike_decided = (sum(map(agrees, some)) / len(some) for some in (pairs, decided))
    assert audit["agree"]["low"] < alike < audit["agree"]["high"]
    assert audit["agree_where_both_decide"]["low"] < alike_decided < audit["agree_where_both_decide"]["high"]
    truth = sum(map(right, decided)) / len(decided)
    assert 0.68 < truth < 0.84
    # People are noisy and like long replies, so they agree with the judge less often than it is right, by a few points.
    assert audit["agree_where_both_decide"]["low"] < truth < audit["agree_where_both_decide"]["high"]
