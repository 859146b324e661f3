"""Algorithms with a loop of their own: what the pipeline brings them, what it does with what they report and leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from alignkit.components import Context
from alignkit.interfaces import Feed, ForeignTrainer
from alignkit.options import RolloutOptions, TrainingOptions
from alignkit.outputs import TrainResult
from alignkit.plugins import Registration, Registry, registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe
from alignkit.records import Group, Prompt, write_groups
from alignkit.runs.reporting import Reporter
from alignkit.runs.results import Run
from alignkit.runs.run import run_recipe
from alignkit.testing import TinyOptions, TinyPolicy, TinyReward, TinyRewardOptions, contracts_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from alignkit.options import Sampling

SEEN: list[dict[str, Any]] = []


class Nudge(ForeignTrainer[TrainingOptions]):
    """Two steps that add to every weight."""

    consumes = Feed.RANKINGS
    uses_reference = True

    def run(
        self,
        groups: Sequence[Group],
        *,
        sampling: Sampling,
        folder: Path,
        seed: int,
        on_step: Callable[[dict[str, float]], None],
    ) -> TrainResult:
        SEEN.append({"groups": list(groups), "sampling": sampling, "folder": folder, "seed": seed})
        for module in self.policy.modules().values():
            for parameter in module.parameters():
                parameter.data.add_(0.01)
        for step in (1, 2):
            on_step({"step": step, "loss": 1 / step})
        return TrainResult(2, 0.5, 7, {"loss": 0.5})


class OnlineNudge(Nudge):
    """The same, on prompts."""

    Config = RolloutOptions
    consumes = Feed.ROLLOUTS


@pytest.fixture
def everything() -> Registry:
    data = [r for r in registry().registrations if r.name == "dataset"]
    entries = [
        ("policy", "hf", TinyPolicy, TinyOptions),
        ("optimizer", "nudge", Nudge, TrainingOptions),
        ("optimizer", "online-nudge", OnlineNudge, RolloutOptions),
        ("reward", "tiny", TinyReward, TinyRewardOptions),
    ]
    return Registry([*data, *(Registration(r, n, target, config, "tests") for r, n, target, config in entries)])


@pytest.mark.parametrize("name", ["nudge", "online-nudge"])
def test_the_pipeline_runs_it_like_any_other(tmp_path: Path, everything: Registry, name: str) -> None:
    pairs = [Group(Prompt(text=f"say {letter}"), (letter, "no"), ranks=(0, 1)) for letter in "abcdefgh"]
    write_groups(tmp_path / "pairs.jsonl", pairs)
    overrides = [f"preferences.path={tmp_path / 'pairs.jsonl'}", "reward.plugin=tiny", "run.holdout=0.3", "run.seed=5"]
    resolved = resolve(load_recipe(None, flags={"optimizer": name, "policy": "hf"}, overrides=overrides), everything)
    SEEN.clear()
    summary = run_recipe(resolved, tmp_path / "out", reporter=Reporter(), stages=["preferences", "align"])
    (given,) = SEEN
    assert (given["seed"], given["folder"], given["sampling"]) == (5, tmp_path / "out" / "policy", resolved.sampling)
    kept = [group for group in pairs if group.prompt.key in {other.prompt.key for other in given["groups"]}]
    assert 0 < len(kept) < len(pairs)
    expected = kept if name == "nudge" else [Group(group.prompt, ("",)) for group in kept]
    assert [(g.prompt.content, g.responses, g.ranks) for g in given["groups"]] == [
        (g.prompt.content, g.responses, g.ranks) for g in expected
    ]
    assert {"steps": 2, "train_seconds": 0.5, "tokens": 7}.items() <= summary["align"].items()
    lines = Run.open(tmp_path / "out").metrics
    assert [(line["stage"], line["step"], line["loss"]) for line in lines] == [("policy", 1, 1.0), ("policy", 2, 0.5)]
    start = TinyPolicy(context=Context(seed=5))
    end = TinyPolicy(TinyOptions(model=str(tmp_path / "out" / "policy")))
    for before, after in zip(start.modules()["policy"].parameters(), end.modules()["policy"].parameters(), strict=True):
        assert bool((after > before).all())


def test_it_makes_no_reference_and_has_no_loss() -> None:
    optimizer = Nudge(policy=TinyPolicy())
    assert optimizer.uses_reference
    assert not hasattr(optimizer, "reference")
    assert not hasattr(optimizer, "loss")


def test_its_contract_is_about_its_options(everything: Registry) -> None:
    found = contracts_for(everything, only="nudge")
    (contract,) = found.values()
    assert hasattr(contract, "test_every_option_is_documented")
    assert not any("gradient" in name or "micro" in name for name in dir(contract))
