"""examples/label-then-train.md is typed as it stands, by a reader, two annotators and an AI that is played."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo_files import FEW_REWARD_STEPS, FEW_STEPS, make_small_demo
from scripted_judge import ScriptedJudge, Seen
from walkthrough import SERVE, Done, Walk, steps

from alignkit import Group, read_groups
from alignkit.preferences.annotations import annotations_of

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parents[1] / "examples/label-then-train.md"
MIX = "alignkit preferences make demo/from-sft.toml --preferences mix "
AN_AI = '{plugin="reward", source={plugin="model", model="demo/ppo/reward"}}'
A_JUDGE = re.compile(r'\{plugin="judge", [^}]*\}')
URL = "http://127.0.0.1:11434/v1"
ENDED = (130, 0)
"""What a server ends with on Ctrl-C; 0 where the tests run as a background job, whose children ignore SIGINT."""
FEW = " ".join(f"-o {option}" for option in FEW_STEPS + FEW_REWARD_STEPS)


def groups(path: Path) -> list[Group]:
    return list(read_groups(path))


def annotators(found: Sequence[Group]) -> Counter[tuple[str, ...]]:
    """How many groups were judged by whom."""
    return Counter(tuple(sorted(one.annotator for one in annotations_of(group))) for group in found)


def test_the_page_is_short_and_ends_where_it_says() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 105
    assert next(command for command, _ in steps(PAGE)) == "alignkit demo --out demo"
    assert sum(command.startswith(SERVE) for command, _ in steps(PAGE)) == 4
    assert sum(AN_AI in command for command, _ in steps(PAGE) if command.startswith(MIX)) == 2


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A reader in an empty folder whose demo takes seconds, and whose annotators have a break after ten items."""
    monkeypatch.chdir(tmp_path)
    instead = {"alignkit demo": lambda: make_small_demo(Path("demo"))}
    return Walk(tmp_path, instead, {"alignkit run": FEW, SERVE: "--port 0"}, patience=(10, None, None, None, None))


@pytest.mark.slow
def test_every_command_does_what_the_page_says(walk: Walk) -> None:
    done = [walk.type(command, shown) for command, shown in steps(PAGE)]
    mixes = [number for number, one in enumerate(done) if one.command.startswith(MIX)]
    for number, one in enumerate(done):
        expected = (2,) if number == mixes[0] else ENDED if one.command.startswith(SERVE) else (0,)
        assert one.code in expected, one
        assert not one.missing, one
        assert one.err.count("is written for") <= 1, "a notice is given once"
    items = groups(walk.folder / "to-label.jsonl")
    judged_before = groups(walk.folder / "so-far.jsonl")
    labelled = groups(walk.folder / "labelled.jsonl")
    assert 10 <= len(judged_before) < len(items) == len(labelled) <= 40
    assert [group.responses for group in labelled] == [group.responses for group in items]
    by_whom = annotators(labelled)
    assert by_whom.keys() == {("anna",), ("ben",), ("anna", "ben")}, by_whom
    for run in ("ppo", "dpo", "mixed"):
        stages = json.loads((walk.folder / "runs" / run / "run.json").read_text())["stages"]
        assert list(stages) == ["sft", "preferences", "reward", "align", "eval"]
        assert stages["eval"].keys() >= {"start", "policy", "win_rate/gold"}
    assert groups(walk.folder / "runs/ppo/preferences.jsonl") == labelled
    check_mixture(done[mixes[0]], groups(walk.folder / "mixed.jsonl"))
    assert re.match(r"The judge agrees with people on \d+% of \d+ random pairs \[\d+, \d+\];", done[-1].out), done[-1]
    assert "Verdict: " in done[-1].out
    judge_instead(walk, done[mixes[0]].command)


def check_mixture(first: Done, mixed: list[Group]) -> None:
    """People's ranks stand where they were asked, the AI's elsewhere."""
    found = re.search(r"0 of (\d+) items labelled", first.err)
    assert found is not None
    asked = int(found[1])
    by_people = [group for group in mixed if group.meta["mix"]["ranks_from"] == "human"]
    assert 0 < asked == len(by_people) < len(mixed)
    for group in by_people:
        reward, anna = annotations_of(group)
        assert [(one.annotator, one.kind) for one in (reward, anna)] == [("reward", "ai"), ("anna", "human")]
        assert group.ranks == anna.ranks


def judge_instead(walk: Walk, command: str) -> None:
    """The table that the page names for a language model, with a judge that likes long replies and, of two that are
    about as long, the one it sees first."""

    def longer(seen: Seen) -> dict[str, str]:
        first, second = (len(seen.blocks[f"response {letter}"]) for letter in "AB")
        return {"verdict": "A" if first > second - 20 else "B"}

    found = A_JUDGE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert URL in found[0]
    with ScriptedJudge(longer) as judge:
        asking = command.replace(AN_AI, found[0].replace(URL, judge.base_url))
        asking = asking.replace("doubts.db", "judged.db").replace("mixed.jsonl", "judged.jsonl")
        first = walk.type(asking)
        assert first.code == 2, first
        paid = judge.requests
        assert walk.type(f"{SERVE}judged.db -a anna").code in ENDED
        second = walk.type(asking)
        assert second.code == 0, second
        assert judge.requests == paid, "verdicts are paid for once"
    mixed = groups(walk.folder / "judged.jsonl")
    by_people = sum(group.meta["mix"]["ranks_from"] == "human" for group in mixed)
    assert 0 < by_people < len(mixed)
