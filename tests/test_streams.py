"""Rollouts have random numbers of their own, by their place; prompts are told apart by all that a reward sees."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from alignkit.errors import StoppedByCheck
from alignkit.ops import distributed
from alignkit.options import RolloutOptions, Sampling
from alignkit.plugins import Registration, Registry, registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe
from alignkit.records import Group, Prompt, read_groups
from alignkit.runs import single
from alignkit.runs.candidates import PolicySampler
from alignkit.runs.reporting import Reporter
from alignkit.runs.rundir import RunDir
from alignkit.runs.stages import Stages
from alignkit.samplers import OwnSampler
from alignkit.testing import TinyOptions, TinyPolicy, TinyReward
from alignkit.training import feeds
from alignkit.training.feeds import RolloutFeed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.batch import GroupBatch

TWO = [Prompt(text="Once upon a time, there was"), Prompt(text="Tom and Lily went to")]


def feed(reward: TinyReward | None = None, **options: Any) -> RolloutFeed:
    given = RolloutOptions(**{"batch_size": 16, "group_size": 4, "iterations": 2, **options})
    sampling = Sampling(max_tokens=40)
    return RolloutFeed(TWO, TinyPolicy(), reward or TinyReward(), sampling=sampling, options=given, seed=3)


def texts(batch: GroupBatch) -> list[str]:
    return [text for group in batch.groups for text in group.responses]


def test_two_prompts_in_a_batch_of_sixteen_get_64_responses() -> None:
    first, second = texts(feed().batch(0)), texts(feed().batch(1))
    # An untrained policy of 28 tokens stops at once in one of 28 cases: such responses are equal by chance.
    long = [text for text in (*first, *second) if len(text) > 4]
    assert len(first) == len(second) == 64
    assert len(long) > 90
    assert len(set(long)) == len(long)
    assert texts(feed().batch(0)) == first, "the same seed gives the same rollouts"


def test_a_rollout_follows_from_its_place_in_the_batch() -> None:
    """Not from the size of the batch, of the groups, or from what else is sampled in this process."""
    whole = feed().batch(0).groups
    assert [group.responses for group in feed(batch_size=3).batch(0).groups] == [g.responses for g in whole[:3]]
    fewer = feed(group_size=2).batch(0).groups
    assert [group.responses for group in fewer] == [group.responses[:2] for group in whole]


def test_processes_share_the_rollouts_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, shares = feed().batch(0).groups, []
    monkeypatch.setattr(feeds, "sum_over_processes", lambda _: 64)
    for block in (range(6), range(6, 11), range(11, 16)):
        monkeypatch.setattr(feeds, "own_block", lambda _, block=block: block)
        shares += feed().batch(0).groups
    assert shares == list(whole)


@pytest.mark.parametrize(("count", "blocks"), [(4, [1, 1, 1, 1]), (11, [3, 3, 3, 2]), (5, [2, 1, 1, 1])])
def test_blocks_follow_each_other_and_differ_by_one_at_most(
    monkeypatch: pytest.MonkeyPatch, count: int, blocks: list[int]
) -> None:
    monkeypatch.setattr(distributed, "num_processes", lambda: 4)
    places: list[int] = []
    for rank, size in enumerate(blocks):
        monkeypatch.setattr(distributed, "process_index", lambda rank=rank: rank)
        assert len(distributed.own_block(count)) == size
        places += distributed.own_block(count)
    assert places == list(range(count))


def test_a_prompt_that_is_asked_again_gets_other_responses() -> None:
    def sampler() -> PolicySampler:
        return PolicySampler(TinyPolicy, lambda: TWO, Sampling(max_tokens=40), 5)

    ask, again = sampler(), sampler()
    asked = [*ask(TWO, 3), *ask(TWO, 3)]
    assert len({group.responses for group in asked}) == 4
    assert [group.responses for group in again([*TWO, *TWO], 3)] == [group.responses for group in asked]


def test_equal_rows_are_sampled_apart_and_rewards_see_each_rows_answer(tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "groups.jsonl"
    rows = [("Pick a number.", "1"), ("Pick a number.", "1"), ("Pick a number.", "2"), ("Pick a letter.", "3")]
    file.write_text("".join(json.dumps({"prompt": p, "final_answer": a}) + "\n" for p, a in rows))
    overrides = ["policy.plugin=tiny", f"prompts.path={file}", "run.holdout=0.0", "sampling.max_tokens=30"]
    tiny = Registration("policy", "tiny", TinyPolicy, TinyOptions, "tests")
    plugins = Registry([*registry().registrations, tiny])
    recipe = resolve(load_recipe(None, flags={}, overrides=overrides), plugins)
    single.sample(recipe, file, 2, out, Reporter())
    assert len({group.responses for group in read_groups(out)}) == 4

    opened = RunDir(tmp_path / "run", recipe="", digest="", resume=False, overwrite=False, force=False)
    with opened as rundir:
        stages = Stages(recipe, rundir, Reporter(), lambda _: None, OwnSampler(), resume=False, force=False)
        kept = [(prompt.text, prompt.meta["final_answer"]) for prompt in stages._prompts]
    assert kept == [rows[0], rows[2], rows[3]]


class Picky(TinyReward):
    """Abstains on a share of each group's responses."""

    abstains = 0

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[None] * self.abstains + [1.0] * (len(group.responses) - self.abstains) for group in groups]


def test_abstentions_are_counted_and_limited() -> None:
    picky = Picky()
    whole = feed(picky)
    whole.batch(0)
    assert whole.figures == {}
    picky.abstains = 2
    half = feed(picky)
    assert half.batch(0).num_responses == 32
    assert half.figures == {"abstained": 0.5}
    with pytest.raises(StoppedByCheck, match=r"abstained on 50% of the responses\n  fix: .* optimizer\.max_abstained"):
        feed(picky, max_abstained=0.4).batch(0)
    picky.abstains = 4
    with pytest.raises(StoppedByCheck, match="abstained on all 64 responses"):
        feed(picky, max_abstained=1.0).batch(0)


def test_a_reward_that_runs_out_of_memory_gets_fewer_prompts(caplog: pytest.LogCaptureFixture) -> None:
    class Hungry(TinyReward):
        def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
            if len(groups) > 4:
                raise RuntimeError("could not create a primitive")
            return super().score(groups)

    expected, found = feed().batch(0).rewards, feed(Hungry()).batch(0).rewards
    assert expected is not None
    assert found is not None
    assert found.tolist() == expected.tolist()
    assert caplog.messages == [f"out of memory in the reward: now {count} prompts at a time" for count in (8, 4)]
