"""The contract suite for every component of the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from alignkit_reward.composed import SumReward
from alignkit_reward.function import FunctionReward
from alignkit_reward.labeller import RewardLabeller
from alignkit_reward.model import ModelReward
from alignkit_reward.rules import RulesReward
from alignkit_reward.training import BradleyTerry, InfoNCE, PlackettLuce

from alignkit import Context
from alignkit.plugins import Registration, read_component, registry
from alignkit.testing import (
    OptimizerContract,
    PreferenceSourceContract,
    RewardSourceContract,
    TinyOptions,
    TinyPolicy,
)
from alignkit.testing.contracts.component import SEED

if TYPE_CHECKING:
    from pathlib import Path

RULES = {
    "plugin": "rules",
    "length": {"target": 3, "maximum": 8, "weight": 0.5},
    "keywords": {"good": ["cat*"], "bad": ["no"]},
    "patterns": {r"^a": 2.0},
    "json": {"weight": -1.0},
}


def _build(role: str, spec: Any) -> Any:
    part, problems = read_component(registry(), role, spec)
    assert part is not None and not problems
    component: Any = part.registration.load()
    return component(part.config, Context(build=_build))


class TestBradleyTerryContract(OptimizerContract):
    component = BradleyTerry
    options = {"label_smoothing": 0.1, "center_coef": 0.01}  # noqa: RUF012


class TestInfoNCEContract(OptimizerContract):
    component = InfoNCE
    options = {"temperature": 0.5}  # noqa: RUF012


class TestPlackettLuceContract(OptimizerContract):
    component = PlackettLuce


class TestFunctionContract(RewardSourceContract):
    component = FunctionReward
    options = {"function": "alignkit.testing.material:letters_of"}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _function(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def letters_of(completions: list[Any], **_: Any) -> list[float]:
            texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
            return [float(len(text)) for text in texts]

        monkeypatch.setattr("alignkit.testing.material.letters_of", letters_of, raising=False)


class TestRulesContract(RewardSourceContract):
    component = RulesReward
    options = {key: value for key, value in RULES.items() if key != "plugin"}  # noqa: RUF012


class TestModelContract(RewardSourceContract):
    component = ModelReward

    @pytest.fixture(autouse=True)
    def _model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = Registration("policy", "tiny", TinyPolicy, TinyOptions, "alignkit-test")
        monkeypatch.setattr(registry(), "registrations", [*registry().registrations, tiny])
        BradleyTerry(policy=TinyPolicy()).save(tmp_path / "reward")
        monkeypatch.setattr(type(self), "options", {"model": str(tmp_path / "reward")})


class TestSumContract(RewardSourceContract):
    component = SumReward
    options = {"sources": (RULES, {"plugin": "rules", "length": {"minimum": 2}}), "weights": (1.0, 0.5)}  # noqa: RUF012

    def context(self) -> Context:
        return Context(seed=SEED, build=_build)


class TestLabellerContract(PreferenceSourceContract):
    component = RewardLabeller
    options = {"source": {"plugin": "rules", "length": {"target": 2}}, "temperature": 0.5}  # noqa: RUF012

    def context(self) -> Context:
        return Context(seed=SEED, build=_build)
