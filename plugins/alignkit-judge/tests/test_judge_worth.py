"""What a run says about a judge's labels, and that people's verdicts stay on the records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_judge.options import JudgePreferenceOptions, JudgeRewardOptions
from alignkit_judge.source import JudgeReward, JudgeSource
from scripted_judge import ScriptedJudge

from alignkit import Group, Prompt, cli, read_groups, write_groups
from alignkit.preferences import Annotation, annotations_of, ranked_by_ai, with_annotations

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scripted_judge import Seen

RANKS = {0: (0, 0), 1: (0, 1), 2: (1, 0)}


def decide(seen: Seen) -> Mapping[str, Any]:
    """The longer of two responses; the first one where the prompt says so; no verdict where it is empty."""
    if seen.blocks["prompt"].startswith("first"):
        return {"verdict": "A"}
    if seen.blocks["prompt"].startswith("mute"):
        return {"verdict": "abstain"}
    return {"verdict": "A" if len(seen.blocks["response A"]) > len(seen.blocks["response B"]) else "B"}


def people(prompt: str, *verdicts: int) -> Group:
    said = [Annotation(f"person {place}", RANKS[one], "human") for place, one in enumerate(verdicts)]
    return with_annotations(Group(Prompt.of(prompt), ("short", "much longer")), said)


def test_figures_by_hand() -> None:
    """Six pairs: three right, one wrong by people's verdict, one tie by position, one abstention. A random person
    agrees on 1, 1, half and 0 of the four that people judged."""
    given = [
        people("a", 2),
        people("b", 2, 2),
        people("c", 2, 0),
        people("d", 1),
        Group(Prompt.of("first"), ("x", "y")),
        Group(Prompt.of("mute"), ("x", "y")),
    ]
    with ScriptedJudge(decide) as judge:
        config = JudgePreferenceOptions(model="m", base_url=judge.base_url, price_in=1.0)
        source = JudgeSource(config)
        assert source.figures() == {}
        found = source.judge(given)
    told = source.figures()["judge"]
    counts = {name: told[name] for name in ("pairs_asked", "answered", "tied", "abstained", "requests")}
    assert counts == {"pairs_asked": 6, "answered": 5, "tied": 1, "abstained": 1, "requests": 12}
    assert told["agreement_with_people"]["value"] == pytest.approx(2.5 / 4)
    assert (told["orders_agree"]["value"], told["orders_agree"]["n"]) == (0.8, 5)
    # Each of the four longer ones is shown first once, and the first wins both looks of the tie: 6 of 10.
    assert told["position_bias"]["value"] == pytest.approx(0.1)
    assert told["position_bias"]["low"] < 0.1 < told["position_bias"]["high"]
    assert told["money"] > 0
    worth = source.figures()["worth"]
    assert worth.startswith("m judged 5 of 6 pairs (1 ties, 1 abstentions; ")
    assert "its orders agree on 80% [38, 96]" in worth
    assert "it agrees with a random person on 62% " in worth
    assert worth.endswith(" of 4 pairs")
    kept = annotations_of(found[2])
    assert [(one.annotator, one.ranks) for one in kept[:2]] == [("person 0", (1, 0)), ("person 1", (0, 0))]
    assert [one.annotator for one in kept[2:]] == ["m", "m"]
    assert ranked_by_ai(found[2])
    assert ranked_by_ai(found[4])


def test_judging_again_replaces_only_the_judges_own_verdicts() -> None:
    with ScriptedJudge(decide) as judge:
        config = JudgePreferenceOptions(model="m", base_url=judge.base_url)
        (once,) = JudgeSource(config).judge([people("a", 1)])
        other = with_annotations(once, [*annotations_of(once), Annotation("other", (0, 1), "ai")])
        (twice,) = JudgeSource(config).judge([other])
    assert [one.annotator for one in annotations_of(twice)] == ["person 0", "other", "m", "m"]


def test_a_run_says_so_at_its_end_in_its_files_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    write_groups(data, [Group(Prompt.of(name), ("short", "much longer")) for name in "abc"])
    with ScriptedJudge(decide) as judge:
        words = [
            f"preferences.{option}"
            for option in ("model=m", f"base_url={judge.base_url}", "cache=", "responses.plugin=dataset")
        ]
        options = [word for option in (*words, f"preferences.responses.path={data}") for word in ("-o", option)]
        command = ["preferences", "--preferences", "judge", *options]
        assert cli.run([*command, "--out", str(out), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert cli.run([*command, "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert told["preferences"]["judge"]["pairs_asked"] == 3
    assert told["worth"].startswith("preferences: m judged 3 of 3 pairs")
    assert "nobody has checked its labels" in told["worth"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("worth")
    stages = json.loads((out / "run.json").read_text())["stages"]
    assert stages["preferences"]["judge"] == told["preferences"]["judge"]
    assert "nobody has checked its labels" in (out / "report.html").read_text(encoding="utf-8")
    assert all(map(ranked_by_ai, read_groups(out / "preferences.jsonl")))


def test_a_judge_as_reward_logs_what_it_spent() -> None:
    with ScriptedJudge(lambda seen: {"score": 5}) as judge:
        reward = JudgeReward(JudgeRewardOptions(model="m", base_url=judge.base_url, price_out=2.0))
        assert reward.worth() == ""
        reward.score([Group(Prompt.of("p"), ("x", "y"))])
    figures = reward.figures()
    assert (figures["judge_abstained"], figures["judge_requests"]) == (0, 2)
    assert reward.worth().startswith("m scored 2 of 2 responses (2 requests, 2 paid (")
    assert reward.worth().endswith("and nobody has checked its scores")
    assert figures["judge_tokens"] > 0
    assert figures["judge_money"] > 0
