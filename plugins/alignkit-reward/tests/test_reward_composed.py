"""Sums and ensembles, and a source as labeller: weights, abstentions, ties, duplicates and the noise's distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_reward.composed import EnsembleReward, SumReward
from alignkit_reward.labeller import RewardLabeller, RulesLabeller
from alignkit_reward.options import (
    EnsembleOptions,
    KeywordRule,
    LabellerOptions,
    LengthRule,
    RulesLabellerOptions,
    SumOptions,
)

from alignkit import Context, Group, InputError, Prompt, RewardSource
from alignkit.interfaces import Feed, Optimizer
from alignkit.options import RolloutOptions, Sampling, specs_of
from alignkit.testing import TinyPolicy, assert_near, near
from alignkit.testing.material import FixedSampler
from alignkit.training.engine import train
from alignkit.training.feeds import RolloutFeed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit import Scorer
    from alignkit.batch import GroupBatch


class Lookup(RewardSource[Any]):
    """Scores by text."""

    def __init__(self, table: dict[str, float | None]) -> None:
        super().__init__()
        self.table = table
        self.calibrated_on: Sequence[Group] = ()

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[self.table[text] for text in group.responses] for group in groups]

    def calibrate(self, groups: Sequence[Group]) -> None:
        self.calibrated_on = groups

    def start_critic(self) -> Scorer | None:
        return loud_scorer() if "critic" in self.table else None


class AsLong(Lookup):
    """A factor times the letters of a response."""

    def __init__(self, factor: float) -> None:
        super().__init__({})
        self.factor = factor

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[self.factor * len(text) for text in group.responses] for group in groups]


def loud_scorer() -> Scorer:
    """A scorer whose head is not zero."""
    scorer = TinyPolicy().scorer()
    with torch.no_grad():
        scorer.modules()["scorer"].get_submodule("score").weight.fill_(0.25)  # type: ignore[union-attr, operator]
    return scorer


def outputs(scorer: Scorer, batch: GroupBatch) -> tuple[torch.Tensor, torch.Tensor]:
    found = scorer.forward(batch)
    return found.values, found.scores


def context(*sources: Lookup, seed: int = 0) -> Context:
    return Context(seed=seed, build=lambda role, spec: sources[spec["number"]] if role == "reward" else None)  # type: ignore[arg-type, return-value]


def total(weights: tuple[float, ...], *sources: Lookup) -> SumReward:
    specs = tuple({"plugin": "lookup", "number": number} for number in range(len(sources)))
    return SumReward(SumOptions(sources=specs, weights=weights), context(*sources))


def test_sum_is_weighted_and_abstains_with_any_source() -> None:
    one, two = Lookup({"x": 1.0, "y": 2.0, "z": 3.0}), Lookup({"x": 10.0, "y": None, "z": -1.0})
    given = [Group(Prompt(text="p"), ("x", "y")), Group(Prompt(text="q"), ("z",))]
    assert total((2.0, -0.5), one, two).score(given) == [[2 * 1 - 0.5 * 10, None], [2 * 3 + 0.5]]
    assert total((), one, two).score(given) == [[11.0, None], [2.0]]


def test_sum_passes_on_calibration_and_finds_a_critic() -> None:
    one, two = Lookup({"x": 1.0}), Lookup({"critic": 1.0})
    given = [Group(Prompt(text="p"), ("x",))]
    total((), one, two).calibrate(given)
    assert one.calibrated_on == two.calibrated_on == given
    assert total((), one, two).start_critic() is not None
    assert total((), one).start_critic() is None


def test_the_critic_of_a_sum_is_on_the_scale_of_its_weight() -> None:
    one, two = Lookup({"x": 1.0}), Lookup({"critic": 1.0})
    batch = TinyPolicy().encode([Group(Prompt(text="p"), ("say it", "no"))])
    plain, weighted = total((), one, two).start_critic(), total((1.0, -2.0), one, two).start_critic()
    assert plain is not None and weighted is not None
    scores = plain.forward(batch).scores
    assert bool((scores != 0).all())
    assert_near(weighted.forward(batch).scores, -2 * scores, terms=4)
    assert total((1.0, 0.0), one, two).start_critic() is None


def test_a_scorer_is_rescaled_on_every_token() -> None:
    batch = TinyPolicy().encode([Group(Prompt(text="p"), ("say it", "no"))])
    before, after = loud_scorer(), loud_scorer()
    after.rescale(0.3, 4.0)
    for old, new in zip(outputs(before, batch), outputs(after, batch), strict=True):
        assert_near(new, (old - 0.3) / 4.0, terms=20, scale=1.0)


def ensemble(*sources: Lookup, **options: Any) -> EnsembleReward:
    specs = tuple({"plugin": "lookup", "number": number} for number in range(len(sources)))
    return EnsembleReward(EnsembleOptions(sources=specs, **options), context(*sources))


MEMBERS = ({"x": 1.0, "y": 4.0, "z": 0.0}, {"x": 2.0, "y": 4.0, "z": None}, {"x": 6.0, "y": 4.0, "z": 1.0})
DISAGREED = 14 / 3
"""The variance of 1, 2 and 6, whose mean is 3."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3.0 - math.sqrt(DISAGREED)),
        ({"spread_coef": 0.5}, 3.0 - 0.5 * math.sqrt(DISAGREED)),
        ({"spread_coef": 0.0}, 3.0),
        ({"spread": "variance", "spread_coef": 0.5}, 3.0 - 0.5 * DISAGREED),
        ({"combine": "minimum"}, 1.0),
    ],
)
def test_an_ensemble_takes_off_what_its_members_do_not_agree_on(options: dict[str, Any], expected: float) -> None:
    source = ensemble(*map(Lookup, MEMBERS), **options)
    given = [Group(Prompt(text="p"), ("x", "y")), Group(Prompt(text="q"), ("z", "x"))]
    (x, y), (z, again) = source.score(given)
    assert (y, z) == (4.0, None)
    assert x == again == pytest.approx(expected, abs=1e-12)


def test_members_figures_are_told() -> None:
    source = ensemble(*map(Lookup, MEMBERS))
    source.score([Group(Prompt(text="p"), ("x", "y", "z"))])
    told = source.figures()
    assert dict(told) == pytest.approx(
        {"reward/0": 2.5, "reward/1": 3.0, "reward/2": 5.0, "reward_spread": math.sqrt(DISAGREED) / 2}
    )
    source.score([Group(Prompt(text="p"), ("z",))])
    assert told.keys() == source.figures().keys()
    weighted = total((2.0, -0.5), Lookup({"x": 1.0, "y": 2.0}), Lookup({"x": 10.0, "y": None}))
    weighted.score([Group(Prompt(text="p"), ("x", "y"))])
    assert weighted.figures() == {"reward/0": 1.0, "reward/1": 10.0}


def test_an_ensemble_passes_on_calibration_and_finds_a_critic() -> None:
    one, two = Lookup({"x": 1.0}), Lookup({"critic": 1.0})
    given = [Group(Prompt(text="p"), ("x",))]
    ensemble(one, two).calibrate(given)
    assert one.calibrated_on == two.calibrated_on == given
    assert ensemble(one, two).start_critic() is not None
    assert ensemble(one, one).start_critic() is None


def test_an_ensembles_options_are_checked() -> None:
    spec = {"plugin": "lookup"}
    with pytest.raises(InputError, match="sources: an ensemble needs at least two members"):
        EnsembleOptions(sources=(spec,)).check()
    with pytest.raises(InputError, match="sources: is empty"):
        EnsembleOptions(sources=()).check()
    for changed in ({"spread_coef": 2.0}, {"spread": "variance"}):
        with pytest.raises(InputError, match=f"{next(iter(changed))}: has no effect without combine = 'mean-spread'"):
            EnsembleOptions(sources=(spec, spec), combine="minimum", **changed).check()  # type: ignore[arg-type]


def test_members_figures_reach_the_log_of_a_run(tmp_path: Path) -> None:
    """And they are those of the rollouts, not of what the algorithm itself has scored later."""
    log = []
    policy = TinyPolicy()
    reward = ensemble(AsLong(1.0), AsLong(3.0), spread_coef=0.5)  # type: ignore[arg-type]
    options = RolloutOptions(iterations=2, batch_size=2, minibatch_size=2, group_size=4)

    class Reading(Optimizer[RolloutOptions]):
        consumes = Feed.ROLLOUTS

        def prepare(self, batch: GroupBatch) -> GroupBatch:
            assert self.reward is not None
            self.reward.score([Group(Prompt(text="p"), ("x" * 1000,))])
            self.batch_metrics = {"mean": float(batch.lengths.float().mean())}
            return batch

        def loss(self, batch: GroupBatch) -> Any:
            return self.policy.forward(batch).logprobs.sum(), {}

    feed = RolloutFeed(
        [Prompt(text="a"), Prompt(text="b")], policy, reward, sampling=Sampling(max_tokens=6), options=options, seed=0
    )
    train(Reading(options, policy=policy, reward=reward), feed, folder=tmp_path, seed=0, on_step=log.append)
    for record in log:
        letters = record["reward/0"]
        assert 0 < letters <= 6
        assert record["reward/1"] == near(3 * letters, terms=8)
        assert record["reward_spread"] == near(letters, terms=8)
        assert letters <= record["mean"] <= letters + 1


def test_specs_are_checked() -> None:
    spec = {"plugin": "lookup"}
    assert list(specs_of(SumOptions(sources=(spec, spec)))) == [
        ("sources.0", "reward", spec),
        ("sources.1", "reward", spec),
    ]
    assert list(specs_of(LabellerOptions(source=spec))) == [("source", "reward", spec)]
    with pytest.raises(InputError, match="weights: 1 weights for 2 sources"):
        SumOptions(sources=(spec, spec), weights=(1.0,)).check()
    with pytest.raises(InputError, match="sources: is empty"):
        SumOptions(sources=()).check()


class Sampled(FixedSampler):
    """The same texts for every prompt, whatever k."""

    def __init__(self, prompts: Sequence[Prompt], texts: tuple[str, ...]) -> None:
        super().__init__(prompts)
        self.texts = texts

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        assert k == 4
        return [Group(prompt, self.texts) for prompt in prompts]


def labeller(source: Lookup, *, temperature: float = 0.0, seed: int = 0) -> RewardLabeller:
    options = LabellerOptions(source={"plugin": "lookup", "number": 0}, k=4, temperature=temperature)
    return RewardLabeller(options, context(source, seed=seed))


def test_labeller_ranks_drops_duplicates_and_abstentions() -> None:
    source = Lookup({"good": 2.0, "fine": 1.0, "bad": -1.0, "unknown": None, "same": 1.0})
    one = [Prompt(text="p", meta={"id": 7})]
    (found,) = labeller(source).preferences(Sampled(one, ("bad", "good", "bad", "unknown", "fine", "same")))
    assert found.responses == ("bad", "good", "fine", "same")
    assert found.ranks == (2, 0, 1, 1)
    assert found.scores == (-1.0, 2.0, 1.0, 1.0)
    assert (found.source, found.prompt.meta) == ("reward", {"id": 7})


def test_rules_rank_without_a_reward_source_of_their_own() -> None:
    options = RulesLabellerOptions(length=LengthRule(maximum=2), keywords=KeywordRule(good=("kind",)))
    texts = ("one two three", "one two", "kind one two three", "kind", "one two")
    (found,) = RulesLabeller(options).preferences(Sampled([Prompt(text="p")], texts))
    assert (found.scores, found.ranks, found.source) == ((0.0, 1.0, 1.0, 2.0), (2, 1, 1, 0), "rules")
    with pytest.raises(InputError, match="no rule is given"):
        RulesLabellerOptions().check()


def test_labeller_leaves_out_what_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Lookup({"fine": 1.0, "same": 1.0, "unknown": None})
    prompts = [Prompt(text="p"), Prompt(text="q")]
    assert list(labeller(source).preferences(Sampled(prompts, ("fine", "same", "unknown", "fine")))) == []
    assert "2 of 2 prompts dropped" in caplog.text


def test_labellers_noise_follows_bradley_terry_and_the_seed() -> None:
    source = Lookup({"good": 1.0, "bad": 0.0})
    prompts = [Prompt(text=str(number)) for number in range(4000)]

    def wins(seed: int) -> list[bool]:
        noisy = labeller(source, temperature=0.5, seed=seed)
        return [group.ranks == (0, 1) for group in noisy.preferences(Sampled(prompts, ("good", "bad")))]

    first = wins(0)
    assert first == wins(0)
    assert first != wins(1)
    expected = 1 / (1 + math.exp(-1 / 0.5))
    assert sum(first) / 4000 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))
    alone = labeller(source, temperature=0.5).preferences(Sampled(prompts[17:18], ("good", "bad")))
    assert [group.ranks == (0, 1) for group in alone] == first[17:18]


def test_labellers_noise_follows_plackett_luce() -> None:
    source = Lookup({"good": 1.0, "fine": 0.0, "bad": 0.0})
    prompts = [Prompt(text=str(number)) for number in range(4000)]
    drawn = labeller(source, temperature=0.5).preferences(Sampled(prompts, ("good", "fine", "bad")))
    expected = math.exp(2) / (math.exp(2) + 2)
    share = sum(group.ranks is not None and group.ranks[0] == 0 for group in drawn) / 4000
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))
