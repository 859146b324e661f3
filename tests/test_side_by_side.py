"""A judge that compares the replies of a comparison side by side, behind a real server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report.compare.ranked import SideBySide, ranking
from scripted_judge import ScriptedJudge, Seen

from alignkit import Group, InputError, Prompt, cli, read_groups, write_groups
from alignkit.commands import SAMPLE_FIGURES, Resolved, read_recipe
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def longer(seen: Seen) -> dict[str, Any]:
    """Prefers the longer reply; of two equally long ones that which it reads first."""
    if "response B" not in seen.blocks:
        return {"score": 5}
    return {"verdict": "B" if len(seen.blocks["response B"]) > len(seen.blocks["response A"]) else "A"}


def spec_of(judge: ScriptedJudge) -> str:
    return f'eval.rewards.judge={{plugin="judge", model="scripted", base_url="{judge.base_url}"}}'


def resolved(judge: ScriptedJudge) -> Resolved:
    return read_recipe(
        None, flags={}, overrides=[spec_of(judge), 'eval.rewards.rule={plugin="rules", length={maximum=3}}']
    )


def run(folder: Path, start: Sequence[str], policy: Sequence[str]) -> Path:
    """A run directory with two samples to each prompt, as `aaa bb`."""
    groups = [
        Group(Prompt.of(f"ask {place}"), tuple(texts.split()), source=source, meta={SAMPLE_FIGURES: {"kl": [0.0, 0.0]}})
        for source, of in (("start", start), ("policy", policy))
        for place, texts in enumerate(of)
    ]
    folder.mkdir(parents=True)
    write_groups(folder / "samples.jsonl", groups)
    return folder


def test_places_are_those_of_both_orders_and_equal_replies_tie(tmp_path: Path) -> None:
    runs = {
        "dpo": run(tmp_path / "dpo", ["a bb", "same same"], ["ccc dd", "same long-one"]),
        "ppo": run(tmp_path / "ppo", ["a bb", "same same"], ["eeeee f", "same same"]),
    }
    with ScriptedJudge(longer) as judge:
        found = SideBySide(resolved(judge), "judge", tmp_path).of_seed(runs)
        asked = judge.requests
        assert SideBySide(resolved(judge), "judge", tmp_path).of_seed(runs) == found
        assert judge.requests == asked
    rows = {
        name: [group.meta[SAMPLE_FIGURES]["judge side by side"] for group in groups] for name, groups in found.items()
    }
    # First samples: eeeee, ccc, a; second: bb and dd tie, because the judge takes the first of them in either order, f.
    # To the second prompt all first replies are one text; of the second, the long one is first.
    assert rows == {
        "dpo": [[-3.0, -1.0], [-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0]],
        "ppo": [[-3.0, -1.0], [-1.0, -2.0], [-1.0, -3.0], [-1.0, -2.0]],
    }
    # Three pairs, three pairs, none and one, each in both orders.
    assert asked == 2 * (3 + 3 + 0 + 1)
    assert found["dpo"][0].meta[SAMPLE_FIGURES]["kl"] == [0.0, 0.0]


@pytest.mark.parametrize("name", ["rule", "reward"])
def test_what_only_scores_is_refused(name: str) -> None:
    with ScriptedJudge(longer) as judge, pytest.raises(InputError, match=f"'{name}' can't compare replies"):
        ranking(resolved(judge), name)


RECIPE = """
policy.model = "model"
run.holdout = 0.5
preferences.path = "pairs.jsonl"
optimizer.learning_rate = 1e-3
sampling.max_tokens = 6
eval = {count = 6, samples = 2}
"""


@pytest.mark.slow
def test_a_comparison_is_decided_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_llama(tmp_path / "model")
    pairs = [{"prompt": f"{a}{b}", "chosen": "abab", "rejected": "a"} for a in "abcdef" for b in "ab"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    with ScriptedJudge(longer) as judge:
        words = ["compare", "recipe.toml", "--optimizers", "dpo,ipo", "--judge", "judge", "--side-by-side", "--json"]
        assert cli.run([*words, "-o", spec_of(judge)]) == 0
        found = json.loads(capsys.readouterr().out)
        asked = judge.requests
        assert cli.run([*words, "-o", spec_of(judge)]) == 0
        assert json.loads(capsys.readouterr().out) == found
        assert judge.requests == asked
    assert found["judge"] == "judge side by side"
    samples = {
        name: list(read_groups(tmp_path / f"comparison/runs/{name}/seed-0/samples.jsonl")) for name in ("dpo", "ipo")
    }
    for name, groups in samples.items():
        texts = {
            source: [t for g in groups if g.source == source for t in g.responses] for source in ("start", "policy")
        }
        wins = [
            (len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a, b in zip(texts["policy"], texts["start"], strict=True)
        ]
        assert found["variants"][name]["win_rate"]["value"] == pytest.approx(sum(wins) / len(wins), abs=1e-4)
        assert "win_rate_same_length/judge side by side" in found["variants"][name]["measures"]
    assert "rating" in found["variants"]["ipo"]
