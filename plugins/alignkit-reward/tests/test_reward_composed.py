"""Sums of sources, and a source as labeller: weights, abstentions, ties, duplicates and the noise's distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_reward.composed import SumReward
from alignkit_reward.labeller import RewardLabeller
from alignkit_reward.options import LabellerOptions, SumOptions

from alignkit import Context, Group, InputError, Prompt, RewardSource
from alignkit.testing import TinyPolicy
from alignkit.testing.material import FixedSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit import Scorer


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
        return TinyPolicy().scorer() if "critic" in self.table else None


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


def test_specs_are_checked() -> None:
    spec = {"plugin": "lookup"}
    assert list(SumOptions(sources=(spec, spec)).nested()) == [
        ("sources.0", "reward", spec),
        ("sources.1", "reward", spec),
    ]
    assert list(LabellerOptions(source=spec).nested()) == [("source", "reward", spec)]
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


def test_labeller_leaves_out_what_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Lookup({"fine": 1.0, "same": 1.0, "unknown": None})
    prompts = [Prompt(text="p"), Prompt(text="q")]
    assert list(labeller(source).preferences(Sampled(prompts, ("fine", "same", "unknown", "fine")))) == []
    assert "2 of 2 prompts left out" in caplog.text


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
