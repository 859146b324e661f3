"""The judge as a run uses it: on files and fresh samples, by flags, with a constitution and several judges."""

from __future__ import annotations

import json
import random
from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_judge.options import JudgeModel, JudgePreferenceOptions
from alignkit_judge.rubrics import RUBRICS, draw, principles_of
from alignkit_judge.source import JudgeSource
from scripted_judge import ScriptedJudge

from alignkit import cli
from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.plugins import registry
from alignkit.preferences.annotations import annotations_of
from alignkit.records import Group, Prompt, read_groups, write_groups
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scripted_judge import Seen


def lengths(seen: Seen) -> dict[str, int]:
    return {name.removeprefix("response "): len(text) for name, text in seen.blocks.items() if name != "prompt"}


def longest(seen: Seen) -> Mapping[str, Any]:
    """Prefers the longer response."""
    found = lengths(seen)
    if "response" in found:
        return {"score": min(10, found["response"])}
    if '"ranking"' in seen.asked:
        return {
            "ranking": [[each for each in found if found[each] == size] for size in sorted({*found.values()})[::-1]]
        }
    return {"verdict": "tie" if found["A"] == found["B"] else max(found, key=lambda label: found[label])}


def groups() -> list[Group]:
    return [
        Group(Prompt.of("first"), ("aa", "aaaa", "a", "bbbb")),
        Group(Prompt.of([{"role": "user", "content": "second"}]), ("one", "three")),
    ]


def judged_by(judge: ScriptedJudge, given: list[Group], **options: Any) -> tuple[list[Group], JudgeSource]:
    config = JudgePreferenceOptions(model="longest", base_url=judge.base_url, **options)
    source = JudgeSource(config, Context(seed=5))
    return source.judge(given), source


@pytest.mark.parametrize(("protocol", "asked"), [("pairwise", 2 * 6 + 2), ("listwise", 4), ("pointwise", 6)])
def test_all_protocols_rank_alike(protocol: str, asked: int) -> None:
    with ScriptedJudge(longest) as judge:
        found, source = judged_by(judge, groups(), protocol=protocol)
    assert [group.ranks for group in found] == [(2, 0, 3, 0), (1, 0)]
    assert judge.requests == asked
    assert source.explain().startswith("2 groups judged by longest: 2 ranked, 0 tied, 0 abstained; ")
    assert found[0].source == "judge"
    assert found[0].meta["cost"]["requests"] == asked - {"pairwise": 2, "listwise": 2, "pointwise": 2}[protocol]
    margin = fmean((2, 1, 2, 3, 0, 3)) / 9 if protocol == "pointwise" else 5 / 6
    assert found[0].meta["judge"] == {"margin": pytest.approx(margin, abs=1e-4)} | dict.fromkeys(
        ("orders_disagree", "judges_disagree", "abstained"), 0.0
    )
    assert all(note.ranks == (2, 0, 3, 0) for note in annotations_of(found[0]))
    orders = [note.order for note in annotations_of(found[0])]
    assert orders == ([None] if protocol == "pointwise" else [(0, 1, 2, 3), (3, 2, 1, 0)])
    assert Group.from_json(json.loads(json.dumps(found[0].to_json()))) == found[0]


def test_a_judge_that_prefers_the_first_position_is_found_out() -> None:
    many = [Group(Prompt.of(str(number)), ("aa", "bb")) for number in range(5)]
    with ScriptedJudge(lambda seen: {"verdict": "A"}) as judge:
        found, source = judged_by(judge, many)
        assert [group.ranks for group in found] == [(0, 0)] * 5
        # Wilson's lower bound of 10 in 10 is 10 / (10 + 1.96**2) = 0.722.
        said = "the first position wins +50.0 points [+22, +50] more than half; orders disagree in 100%"
        assert said in source.explain()
        assert "5 tied" in source.explain()
        found, _ = judged_by(judge, many, orders="one")
        assert {group.ranks for group in found} == {(0, 1), (1, 0)}


@pytest.mark.slow
def test_a_bias_of_20_points_is_measured_and_evened_out() -> None:
    """The judge prefers the first position in 4 of 10 questions and tells the truth in the others: 20 points."""
    given = [Group(Prompt.of(str(number)), ("good", "the better")) for number in range(500)]

    def biased(seen: Seen) -> Mapping[str, Any]:
        return {"verdict": "A"} if random.Random(f"{seen.nonce}").random() < 0.4 else longest(seen)

    with ScriptedJudge(biased) as judge:
        found, source = judged_by(judge, given, concurrency=2)
        measured = float(source.explain().split("wins ")[1].split(maxsplit=1)[0])
    counts = Counter(group.ranks for group in found)
    assert (0, 1) not in counts
    assert counts[1, 0] + counts[0, 0] == 500
    assert counts[1, 0] == pytest.approx(0.6 * 500, abs=33)
    first = sum(note.verdict(*note.order[:2]) == 1 for g in found for note in annotations_of(g) if note.order)
    assert measured == pytest.approx(100 * (first / 1000 - 0.5), abs=0.05)
    assert measured == pytest.approx(20, abs=3)


def test_several_judges_vote_and_one_may_abstain() -> None:
    def decide(seen: Seen) -> Mapping[str, Any]:
        model = seen.payload["model"]
        return {"verdict": "abstain"} if model == "silent" else longest(seen) if model != "wrong" else shortest(seen)

    def shortest(seen: Seen) -> Mapping[str, Any]:
        return {"verdict": "AB".replace(str(longest(seen)["verdict"]), "")}

    with ScriptedJudge(decide) as judge:
        names = ("one", "two", "wrong", "silent", "two")
        config = JudgePreferenceOptions(judges=tuple(JudgeModel(model=name, base_url=judge.base_url) for name in names))
        source = JudgeSource(config)
        (found,) = source.judge(groups()[1:])
    assert found.ranks == (1, 0)
    assert source.panel.names == ["one", "two (2)", "wrong", "silent", "two (5)"]
    assert [note.ranks for note in annotations_of(found)][::2] == [(1, 0), (1, 0), (0, 1), None, (1, 0)]
    assert found.meta["judge"]["judges_disagree"] == 1.0


def test_samples_are_asked_apart_and_the_most_frequent_counts() -> None:
    def decide(seen: Seen) -> Mapping[str, Any]:
        return longest(seen) if seen.payload.get("seed", 0) != 1 else {"verdict": "tie"}

    with ScriptedJudge(decide) as judge:
        found, _ = judged_by(judge, groups()[1:], samples=3, temperature=1.0)
        assert judge.requests == 6
    assert found[0].ranks == (1, 0)


def test_a_constitution_gives_each_item_a_principle_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "principles.txt"
    file.write_text("# ours\n- Be kind.\n\nBe brief.\nBe right.\n")
    assert principles_of(str(file)) == ["Be kind.", "Be brief.", "Be right."]
    many = [Group(Prompt.of(str(number)), ("a", "bb")) for number in range(12)]
    with ScriptedJudge(longest) as judge:
        judged_by(judge, many, constitution=str(file))
        said = {
            (seen.blocks["prompt"], line) for seen in judge.seen for line in seen.asked.splitlines() if "Be " in line
        }
        judged_by(judge, groups()[1:], rubric="harmless")
        judged_by(judge, groups()[1:], criterion="The one with more rhymes is better.")
    assert len(said) == 12
    assert len({principle for _, principle in said}) == 3
    assert said == {
        (group.prompt.plain, f"Judge by this principle: {draw(principles_of(str(file)), 5, group.prompt.key)}")
        for group in many
    }
    assert RUBRICS["harmless"] in judge.seen[-4].asked
    assert "more rhymes" in judge.seen[-1].asked


@pytest.mark.parametrize(("name", "text"), [("a.txt", "# nothing\n"), ("a.toml", "principles = 3"), ("a.toml", "x =")])
def test_a_constitution_without_principles_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        principles_of(str(tmp_path / name))
    assert refused.value.where == "constitution"
    (tmp_path / "good.toml").write_text('principles = ["Be kind.", " "]')
    assert principles_of(str(tmp_path / "good.toml")) == ["Be kind."]


def test_both_roles_are_registered() -> None:
    for role in ("preferences", "reward"):
        assert registry().get(role, "judge").distribution == "alignkit-judge"


def test_pairs_of_a_file_are_judged_and_scored_by_flags(tmp_path: Path) -> None:
    data, labelled, scored = (tmp_path / name for name in ("data.jsonl", "labelled.jsonl", "scored.jsonl"))
    write_groups(data, [Group(group.prompt, group.responses, ranks=None) for group in groups()])
    with ScriptedJudge(longest) as judge:
        common = ["model=longest", f"base_url={judge.base_url}", "cache="]
        words = [word for option in common for word in ("-o", f"preferences.{option}")]
        source = ["-o", "preferences.responses.plugin=dataset", "-o", f"preferences.responses.path={data}"]
        out = ["--out", str(labelled), "--quiet"]
        assert cli.run(["preferences", "--preferences", "judge", *words, *source, *out]) == 0
        words = [word for option in common for word in ("-o", f"reward.{option}")]
        assert cli.run(["score", str(data), "--reward", "judge", *words, "--out", str(scored), "--quiet"]) == 0
    assert [group.ranks for group in read_groups(labelled)] == [(2, 0, 3, 0), (1, 0)]
    assert [group.scores for group in read_groups(scored)] == [(2, 4, 1, 4), (3, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_a_local_judge_from_samples_to_a_trained_policy_by_flags(algorithm: str, tmp_path: Path) -> None:
    """min_mass = 0 lets the random judge decide, so that there is something to train on."""
    model = write_tiny_llama(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(8)))
    judge = ["backend=local", f"model={model}", "min_mass=0", "cache="]
    options = [
        f"policy.model={model}",
        "prompts.plugin=dataset",
        f"prompts.path={prompts}",
        "sampling.max_tokens=6",
        "run.holdout=0.25",
    ]
    flags = ["--policy", "hf", "--optimizer", algorithm]
    if algorithm == "dpo":
        flags += ["--preferences", "judge"]
        options += [f"preferences.{option}" for option in (*judge, "protocol=pointwise", "min_margin=0", "k=3")]
    else:
        flags += ["--reward", "judge"]
        options += [f"reward.{option}" for option in judge]
        options += ["optimizer.iterations=2", "optimizer.batch_size=4", "optimizer.minibatch_size=2"]
    words = [word for option in options for word in ("-o", option)]
    assert cli.run(["run", *flags, *words, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
    if algorithm == "dpo":
        found = list(read_groups(tmp_path / "run" / "preferences.jsonl"))
        assert len(found) == 8
        assert all(group.ranks and max(group.ranks) > 0 for group in found)
