"""Candidates: of several policies and temperatures in turn, each with its voice, near-duplicates replaced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from alignkit import cli
from alignkit.errors import InputError
from alignkit.options import Sampling
from alignkit.recipe.tables import CandidateOptions
from alignkit.records import Group, Prompt
from alignkit.runs.candidates import PolicySampler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROMPTS = [Prompt.of("p"), Prompt.of("q")]


class Speaker:
    """Says its name, the temperature, the seed and a number; or what it is told to."""

    def __init__(self, name: str, lines: Sequence[str] = ()) -> None:
        self.name, self.lines = name, lines

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int]
    ) -> Any:
        texts = self.lines[:n] or [f"{self.name} {sampling.temperature:g} {seed} {i}" for i in range(n)]
        cut = tuple(i != 1 for i in range(n))
        batch = SimpleNamespace(groups=[Group(prompt, tuple(texts), finished=cut) for prompt in prompts])
        batch.replace = lambda **changes: batch
        return batch


def sampled(k: int, speaker: Speaker, other: str = "", **options: Any) -> list[Group]:
    """What is sampled from the run's policy and, if named, another one."""
    specs = ({"plugin": "hf", "model": f"models/{other}/"},) if other else ()
    sampler = PolicySampler(
        lambda: speaker,  # type: ignore[arg-type,return-value]
        lambda: PROMPTS,
        Sampling(temperature=0.7),
        5,
        CandidateOptions(policies=specs, **options),
        lambda spec: Speaker("other"),  # type: ignore[arg-type,return-value]
    )
    return sampler(sampler.prompts, k)


def test_the_runs_policy_alone_is_sampled_as_it_is() -> None:
    (group, other) = sampled(3, Speaker("own"))
    assert group.responses == ("own 0.7 5 0", "own 0.7 5 1", "own 0.7 5 2")
    assert (other.prompt, dict(group.meta)) == (PROMPTS[1], {})
    assert len(sampled(3, Speaker("own"), count=2)[0].responses) == 2


def test_policies_and_temperatures_speak_in_turn() -> None:
    """Voices in the order own at 0.5, other at 0.5, own at 1, other at 1; the fifth response is the first voice's
    second, which was cut off. Each voice has a seed of its own."""
    group, _ = sampled(5, Speaker("own"), "big", temperatures=(0.5, 1.0))
    assert group.meta["sampled_from"] == [
        "policy at 0.5", "big at 0.5", "policy at 1", "big at 1", "policy at 0.5",
    ]  # fmt: skip
    seeds = [5, 5 + 7919, 5 + 2 * 7919, 5 + 3 * 7919]
    assert group.responses == (
        f"own 0.5 {seeds[0]} 0", f"other 0.5 {seeds[1]} 0", f"own 1 {seeds[2]} 0", f"other 1 {seeds[3]} 0",
        f"own 0.5 {seeds[0]} 1",
    )  # fmt: skip
    assert group.finished == (True, True, True, True, False)


def test_spare_responses_take_the_places_of_near_duplicates() -> None:
    lines = ["one two three", "One, two: three!", "four five six", "seven"]
    near = {"near_duplicate": 0.8}
    assert sampled(2, Speaker("own", lines), spare=2, **near)[0].responses == ("one two three", "four five six")
    assert sampled(2, Speaker("own", lines), **near)[0].responses == ("one two three",)
    kept = sampled(3, Speaker("own", lines), spare=1, **near)[0]
    assert kept.responses == ("one two three", "four five six", "seven")
    assert kept.finished is None


def test_voices_move_with_their_responses() -> None:
    group, _ = sampled(2, Speaker("own"), "big")
    assert group.choose([1, 0]).meta["sampled_from"] == ["big at 0.7", "policy at 0.7"]


def test_options_that_do_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="near_duplicate"):
        CandidateOptions(spare=2).check()


def test_sampling_for_no_labeller_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    assert cli.run(["preferences", "--sample", "4", "-o", "preferences.path=pairs.jsonl", "--out", "x.jsonl"]) == 2
    assert "needs a source that samples responses" in capsys.readouterr().err
    assert cli.run(["preferences", "--sample", "10", "--preferences", "candidates"]) == 2
    assert "at most 9" in capsys.readouterr().err
