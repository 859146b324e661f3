"""The recipes in examples/ run as they stand: with a few steps, and, slowly, in full with the figures they promise."""

from __future__ import annotations

import importlib.util
import json
import statistics
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest
from public_data import FEW_PAIRS, FEW_STORIES, LOCAL, ROOT, SHARED

from alignkit import Group, Prompt, cli, read_groups
from alignkit.options import Sampling
from alignkit.plugins import registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data")
LOSSES = ("pairwise", "infonce", "plackett-luce")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def stories() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stories_example", ROOT / "examples/stories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(recipe: str, out: Path, *options: str, optimizer: str = "") -> dict[str, Any]:
    """Runs a recipe by the command line and returns what its stages said."""
    words = ["run", f"examples/{recipe}.toml", "--out", str(out), "--quiet"]
    words += ["--optimizer", optimizer] if optimizer else []
    assert cli.run([*words, *(word for option in (*LOCAL[recipe], *options) for word in ("-o", option))]) == 0
    stages: dict[str, Any] = json.loads((out / "run.json").read_text())["stages"]
    return stages


@pytest.mark.parametrize(
    ("story", "score"),
    [
        ("Tom was happy. He helped his friends. They laughed.", 4),
        ("Tom was happy, happy, so HAPPY! Yes. Yes.", 1),
        ("Tom was sad. He cried. He lost his ball.", -3),
        ("Tom was not happy but sad. He made a huge badge. So.", 0),
        ("Tom smiled.", 1 - 2),
        ("", -2),
    ],
)
def test_kindness_is_what_a_reader_counts(stories: ModuleType, story: str, score: float) -> None:
    assert stories.kindness(story) == score
    assert stories.kindness_reward(["Once"], [story], extra=[1]) == [score]


def test_demonstrations_are_two_to_four_whole_sentences(stories: ModuleType) -> None:
    long = " ".join(f"It was day {number}." for number in range(9)) + " And th"
    told = [f"{long}{number}" for number in range(20)] + ["Too short", "One. Two", 'He said, "Hi!" She ran. ' * 3]

    class FixedSampler:
        prompts = tuple(Prompt.of(f"Once {number}") for number in range(len(told)))

        def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
            assert k == 1
            return [Group(prompt, (story,)) for prompt, story in zip(prompts, told, strict=True)]

    groups = list(stories.demonstrations(FixedSampler()))
    assert len(groups) == 21
    assert {group.responses[0].count(".") + group.responses[0].count("!") for group in groups} == {2, 3, 4}
    assert all(group.responses[0][-1] in '.!"' for group in groups)
    assert all(told[FixedSampler.prompts.index(group.prompt)].startswith(group.responses[0]) for group in groups)


def test_openings_are_distinct_and_those_of_the_evaluation_are_unseen(stories: ModuleType) -> None:
    def texts(**numbers: int) -> set[str]:
        return {row["prompt"] for row in stories.openings(None, **numbers)}

    recipe = load_recipe(ROOT / "examples/stories-ppo.toml", flags={}, overrides=[])
    seen = texts(**recipe.tables["prompts"]["args"])
    unseen = texts(**recipe.tables["eval"]["prompts"]["args"])
    assert (len(seen), len(unseen)) == (768, 128)
    assert not seen & unseen


@pytest.mark.parametrize("optimizer", ["ppo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_stories_run_with_a_few_steps(tmp_path: Path, optimizer: str) -> None:
    stages = run("stories-ppo", tmp_path / "out", *FEW_STORIES, optimizer=optimizer)
    assert list(stages) == ["sft", "preferences", "reward", "align", "eval"]
    assert stages["eval"]["prompts"] == 6
    demonstrations = list(read_groups(tmp_path / "out" / "demonstrations.jsonl"))
    assert 0 < len(demonstrations) == stages["sft"]["demonstrations"] <= 24


def test_a_reward_model_of_real_chats_with_a_few_steps(tmp_path: Path) -> None:
    stages = run("hh-reward", tmp_path / "out", *FEW_PAIRS)
    assert list(stages) == ["preferences", "reward"]
    assert stages["preferences"] == {"seconds": stages["preferences"]["seconds"], "groups": 24, "pairs": 24}
    assert stages["reward"]["trained_on"] == 0
    assert stages["reward"]["accuracy"]["n"] == stages["reward"]["shorter_wins"]["n"] == stages["reward"]["prompts"] > 0


@pytest.mark.parametrize("loss", ["infonce", *(pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES[::2])])
def test_human_rankings_with_ties_with_a_few_steps(tmp_path: Path, loss: str) -> None:
    stages = run("qa-rankings", tmp_path / "out", *FEW_PAIRS, f"reward.loss={loss}")
    groups = list(read_groups(tmp_path / "out" / "preferences.jsonl"))
    assert {len(group.responses) for group in groups} == {4}
    assert any(len(set(group.ranks or ())) < 4 for group in groups)
    assert (
        {"value", "low", "high", "n"} == stages["reward"]["accuracy"].keys() == stages["reward"]["shorter_wins"].keys()
    )


class StoriesRun:
    """A finished run of stories-ppo.toml, and what is asked of it."""

    def __init__(self, out: Path, kindness: Callable[[str], float]) -> None:
        self.samples = list(read_groups(out / "samples.jsonl"))
        self._kindness = kindness
        models = [f"policy.model={out / 'policy'}", f"reward.model={out / 'reward'}"]
        recipe = load_recipe(ROOT / "examples/stories-ppo.toml", flags={}, overrides=models)
        self._resolved = resolve(recipe, registry())

    def gain(self, score: str) -> float:
        """How much the aligned policy's samples score above the SFT policy's, in the latter's standard deviations."""
        before, after = (
            [self._score(score, g) for g in self.samples if g.source == who] for who in ("start", "policy")
        )
        return (statistics.mean(after) - statistics.mean(before)) / statistics.stdev(before)

    def _score(self, score: str, group: Group) -> float:
        if score == "rule":
            return self._kindness(group.responses[0])
        value: float = self._learned[group.prompt.key, group.responses[0]]
        return value

    @cached_property
    def _learned(self) -> dict[tuple[str, str], float]:
        rows = self._resolved.build("reward").score(self.samples)
        return {(group.prompt.key, group.responses[0]): row[0] for group, row in zip(self.samples, rows, strict=True)}

    def likeliest_stories(self) -> list[str]:
        """The greedy stories of 16 unseen prompts."""
        prompts = [group.prompt for group in self.samples if group.source == "policy"][:16]
        greedy = Sampling(max_tokens=96, temperature=0)
        batch = self._resolved.build("policy").generate(prompts, n=1, sampling=greedy, seed=0)
        return [group.responses[0] for group in batch.groups]


def is_readable(story: str) -> bool:
    """Whole sentences that do not go round in circles."""
    words = story.split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return story.rstrip().endswith((".", "!", "?", '"')) and len(set(trigrams)) > 0.7 * len(trigrams)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "seed"), [("ppo", 0), ("dpo", 0)])
def test_stories_become_kinder(tmp_path: Path, stories: ModuleType, optimizer: str, seed: int) -> None:
    stages = run("stories-ppo", tmp_path / "out", f"run.seed={seed}", optimizer=optimizer)
    before, after = stages["eval"]["start"], stages["eval"]["policy"]
    finished = StoriesRun(tmp_path / "out", stories.kindness)
    assert finished.gain("rule") >= 0.5
    assert finished.gain("learned") >= 0.5
    assert after["kl"]["value"] <= 10
    assert abs(after["tokens"]["value"] / before["tokens"]["value"] - 1) <= 0.4
    assert stages["reward"]["accuracy"]["value"] >= 0.85
    likeliest = finished.likeliest_stories()
    assert len({story for story in likeliest if is_readable(story)}) >= 12, likeliest


@pytest.mark.slow
def test_a_reward_model_of_real_chats_beats_the_shorter_wins_baseline(tmp_path: Path) -> None:
    wins = 0
    for seed in range(5):
        reward = run("hh-reward", tmp_path / str(seed), f"run.seed={seed}")["reward"]
        wins += reward["accuracy"]["value"] > reward["shorter_wins"]["value"]
    assert wins >= 4


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_human_rankings_with_ties_go_through_in_full(tmp_path: Path, loss: str) -> None:
    stages = run("qa-rankings", tmp_path / "out", f"reward.loss={loss}")
    assert stages["preferences"]["groups"] == 478, "22 of the 500 rows contradict themselves"
    for figure in ("accuracy", "shorter_wins"):
        estimate = stages["reward"][figure]
        assert estimate["low"] < estimate["value"] < estimate["high"]
