"""Broken components, each with the sentence of the contract that tells its author what to do."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

import pytest
from test_contract_mutants import Rankings, Reinforce

from alignkit import Config, Group, MetricSink, registry
from alignkit.algorithms import PreferenceLoss, PreferenceOptions
from alignkit.testing import (
    MetricSinkContract,
    OptimizerContract,
    PreferenceSourceContract,
    RewardSourceContract,
    TinyReward,
    contracts_for,
)
from alignkit.testing.failing import contract_of, failing, failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from conftest import InstallPlugin
    from torch import Tensor

    from alignkit import Ask, GroupBatch, Metrics
    from alignkit.algorithms import ResponseLogprobs
    from alignkit.testing import ComponentContract


LOSS = "loss_is_a_finite_scalar_with_detached_metrics"


class Counts(Reinforce):
    """Divides its loss by the number of calls of one method, which it keeps; sound if the state holds it."""

    counted = ""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.calls = 1

    def _called(self, method: str) -> None:
        self.calls += method == self.counted

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        self._called("prepare")
        return super().prepare(batch)

    def begin_step(self, batch: GroupBatch) -> None:
        self._called("begin_step")

    def take_step(self, batch: GroupBatch) -> dict[str, float]:
        self._called("take_step")
        return {}

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        self._called("keep_going")
        return True

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch)
        return loss / self.calls, metrics


class CountsForGood(Counts):
    counted = "keep_going"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.calls = state["calls"]


@pytest.mark.parametrize("method", ["prepare", "begin_step", "take_step", "keep_going"])
def test_an_optimizer_that_loses_state_when_it_is_resumed(method: str, tmp_path: Path) -> None:
    contract = contract_of(OptimizerContract, type("Forgets", (Counts,), {"counted": method}))
    (told,) = failures(contract, tmp_path, "a_resumed_run_goes_on_the_same").values()
    assert told.startswith(
        "the loss of the rest of the batch differs after load_state_dict(): a resumed run would go on"
    )
    assert f"whatever prepare, begin_step, loss, take_step and keep_going store{''} on the Optimizer into state" in told
    assert not failing(contract_of(OptimizerContract, CountsForGood), tmp_path, "a_resumed_run_goes_on_the_same")


class ForgetsTheBaseline(Reinforce):
    """The rest of the batch goes on, because its rewards stand in it; the next batch has another baseline."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def test_an_optimizer_whose_next_batch_differs_when_it_is_resumed(tmp_path: Path) -> None:
    contract = contract_of(OptimizerContract, ForgetsTheBaseline)
    (told,) = failures(contract, tmp_path, "a_resumed_run_goes_on_the_same").values()
    assert told.startswith("prepare() gives other rewards after load_state_dict()")


class Abstains(TinyReward):
    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[None] * len(group.responses) for group in groups]


class OneScoreEach(TinyReward):
    """A score for each group instead of each response."""

    def score(self, groups: Sequence[Group]) -> list[Any]:
        return [float(len(group.responses[0])) for group in groups]


def test_a_reward_of_another_shape_is_told_which_one_is_wanted(tmp_path: Path) -> None:
    found = failures(contract_of(RewardSourceContract, OneScoreEach), tmp_path)
    said = "score() must give a list for each group, with a score for each response: lists of [2, 3, 2, 4, 2], not ["
    assert found["one_float_or_none_for_each_response"].startswith(f"{said}'float ")
    assert all(message.startswith("score() must give a list for each group") for message in found.values())


class Rows(Rankings):
    """Rows of a file instead of groups."""

    def preferences(self, ask: Ask) -> Iterator[Any]:
        yield {"prompt": "a", "chosen": "b", "rejected": "c"}


class LossAlone(Reinforce):
    """Gives no metrics."""

    def loss(self, batch: GroupBatch) -> Any:
        return super().loss(batch)[0]


class LossOfEach(Reinforce):
    """Forgets to average."""

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch)
        return loss.expand(2), metrics


class MeanOfPairs(PreferenceLoss[PreferenceOptions]):
    """Averages where the base does."""

    def pair_losses(self, chosen: ResponseLogprobs, rejected: ResponseLogprobs) -> Tensor:
        return self.leads(chosen, rejected).mean()


@pytest.mark.parametrize(
    ("contract", "component", "test", "said"),
    [
        (PreferenceSourceContract, Rows, "it_yields_groups", "preferences() must yield alignkit.Group, not dict"),
        (OptimizerContract, LossAlone, LOSS, "loss() must give (loss, metrics), not a Tensor"),
        (OptimizerContract, LossOfEach, LOSS, "the loss must be one figure, not of shape (2,): see GroupBatch."),
        (OptimizerContract, MeanOfPairs, LOSS, "pair_losses must give a loss for each pair, of shape (11,), not ()"),
    ],
)
def test_what_a_method_gives_wrongly_is_told(
    contract: type[ComponentContract], component: Any, test: str, said: str, tmp_path: Path
) -> None:
    assert failures(contract_of(contract, component), tmp_path, test)[test].startswith(said)


class Undecided(Rankings):
    """All responses are equally good; some groups have no ranks at all."""

    def preferences(self, ask: Ask) -> Iterator[Group]:
        for number, group in enumerate(super().preferences(ask)):
            yield replace(group, ranks=(0,) * len(group.responses) if number else None, scores=None)


def test_sources_that_abstain_from_everything(tmp_path: Path) -> None:
    reward = failures(contract_of(RewardSourceContract, Abstains), tmp_path)
    assert reward.keys() == {"it_does_not_abstain_from_everything"}
    assert "all 13 scores are None" in reward.popitem()[1]
    source = failures(contract_of(PreferenceSourceContract, Undecided), tmp_path)
    assert source.keys() == {"it_does_not_abstain_from_everything"}
    assert "none of 5 groups has ranks or scores that prefer a response" in source.popitem()[1]


class Undecorated(Config):
    """Options whose class was not made a dataclass."""

    weight: float = 1.0
    """A weight."""


@dataclass(frozen=True)
class ByPosition(Config):
    """Options that a caller may mix up."""

    weight: float = 1.0
    """A weight."""


@dataclass(frozen=True, kw_only=True)
class Untyped(Config):
    """Options of which one is none."""

    matters: ClassVar[tuple[str, ...]] = ("weight",)
    takes_function = ""

    weight: float = 1.0
    """A weight."""
    offset = 0.5
    """An offset."""


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (Undecorated, "weight of Undecorated can't be set: write @dataclass(frozen=True, kw_only=True) above it"),
        (ByPosition, "ByPosition takes weight by position: write @dataclass(frozen=True, kw_only=True) above it"),
        (Untyped, "Untyped.offset has no type, so it is no option: write offset: float ="),
    ],
)
def test_options_that_are_none(config: type[Config], told: str, tmp_path: Path) -> None:
    component = type("Mine", (TinyReward,), {"Config": config})
    test = "options_are_a_frozen_keyword_only_dataclass"
    assert told in failures(contract_of(RewardSourceContract, component), tmp_path, test)[test]


class Lines(MetricSink[Config]):
    """JSON lines: a sound sink, whose methods the broken ones replace."""

    file: TextIO | None = None

    def open(self) -> TextIO:
        assert self.context.folder is not None
        self.file = self.file or (self.context.folder / "lines.jsonl").open("a", encoding="utf-8")
        return self.file

    def place(self, record: Mapping[str, Any]) -> list[Any]:
        return [record["stage"], record["step"]]

    def figures(self, record: Mapping[str, Any]) -> dict[str, float]:
        return {name: float(value) for name, value in record.items() if isinstance(value, Real) and name != "step"}

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in self.figures(record).items():
            self.open().write(json.dumps([*self.place(record), name, value]) + "\n")

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class CountsOnTheStage(Lines):
    def place(self, record: Mapping[str, Any]) -> list[Any]:
        return ["all", record["step"]]


class TakesTheRecord(Lines):
    def place(self, record: Mapping[str, Any]) -> list[Any]:
        return [record.pop("stage") if "stage" in record else "", record["step"]]  # type: ignore[attr-defined]


class ConvertsAnything(Lines):
    def figures(self, record: Mapping[str, Any]) -> dict[str, float]:
        return {name: float(value) for name, value in record.items() if name not in ("stage", "step")}


class RefusesNaN(Lines):
    def figures(self, record: Mapping[str, Any]) -> dict[str, float]:
        for value in super().figures(record).values():
            json.dumps(value, allow_nan=False)
        return super().figures(record)


class ClosesOnce(Lines):
    closed = False

    def close(self) -> None:
        super().close()
        if self.closed:
            raise ValueError("closed already")
        self.closed = True


class ClosesWhatNeverOpened(Lines):
    def close(self) -> None:
        assert self.file is not None
        self.file.close()


class LeavesItOpen(Lines):
    def close(self) -> None:
        pass

    def __del__(self) -> None:
        super().close()


class RepeatsItself(Lines):
    def close(self) -> None:
        assert self.context.folder is not None
        with (self.context.folder / "closed.txt").open("a") as file:
            file.write("closed\n")
        super().close()


class FailsTwice(Lines):
    def write(self, record: Mapping[str, Any]) -> None:
        self.last = record
        for value in record.values():
            repr(value)
        super().write(record)

    def close(self) -> None:
        super().close()
        repr(getattr(self, "last", None))


class SinkContract(MetricSinkContract):
    def kept(self, folder: Path) -> dict[tuple[str, int, str], float]:
        rows = map(json.loads, (folder / "lines.jsonl").read_text().splitlines())
        return {(stage, step, name): value for stage, step, name, value in rows}


@pytest.mark.parametrize(
    ("component", "test", "told"),
    [
        (CountsOnTheStage, "it_keeps_the_figures_of_every_step", r"lost, or differ: \[\('sft', 1, 'loss'\), "),
        (TakesTheRecord, "records_stay_as_they_are", r"write\(\) changes its record, .*: copy it"),
        (ConvertsAnything, "wrong_figures_do_not_stop_the_run", r"fails on None, .*: leave such a figure out"),
        (RefusesNaN, "wrong_figures_do_not_stop_the_run", r"write\(\) fails on nan, so a run of days would end there"),
        (ClosesOnce, "closing_twice_is_harmless", r"the second close\(\) fails"),
        (RepeatsItself, "closing_twice_is_harmless", r"the second close\(\) writes again"),
        (ClosesWhatNeverOpened, "closing_twice_is_harmless", ""),
        (LeavesItOpen, "its_files_are_whole_once_it_is_closed", "leaves run/lines.jsonl incomplete"),
        (FailsTwice, "it_can_be_closed_after_a_failed_write", "hides what ended the run"),
    ],
)
def test_a_broken_sink(component: type[Any], test: str, told: str, tmp_path: Path) -> None:
    found = failures(contract_of(SinkContract, component), tmp_path, test)
    assert re.search(told, found[test]), found


def test_a_sound_sink(tmp_path: Path) -> None:
    assert failures(contract_of(SinkContract, Lines), tmp_path) == {}
    assert failures(contract_of(MetricSinkContract, Lines), tmp_path / "unread") == {}


def test_a_sink_is_tested_as_for_a_user_without_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_TRACKER_URI", "http://localhost:1")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    seen: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        MetricSinkContract.no_accounts.__wrapped__(MetricSinkContract(), patch, tmp_path)
        seen.update(os.environ)
    assert "SOME_TRACKER_URI" not in seen
    assert (seen["PYTHONHASHSEED"], seen["HOME"]) == ("0", str(tmp_path / "home"))
    assert os.environ["SOME_TRACKER_URI"] == "http://localhost:1"


LIGHT = """
import importlib.util
from alignkit import RewardSource, hookimpl

assert importlib.util.find_spec("torch") is not None

class Steady(RewardSource):
    def score(self, groups):
        return [[0.5 for _ in group.responses] for group in groups]

@hookimpl
def register_reward_sources(register):
    register("steady", Steady)
"""


def light(distribution: str) -> ComponentContract:
    contract = contracts_for(registry(), only=distribution)[f"TestDistribution_{distribution.replace('-', '_')}"]
    return contract()  # type: ignore[no-any-return]


def test_an_entry_point_whose_module_imports_torch(install_plugin: InstallPlugin) -> None:
    site = install_plugin("light-reward", LIGHT)
    light("light-reward").test_its_entry_points_import_no_torch()  # type: ignore[attr-defined]
    (site / "heavy_parts.py").write_text("try:\n    import transformers\nexcept ImportError:\n    pass\n")
    install_plugin("heavy-reward", f"import sys\nimport heavy_parts\n{LIGHT}")
    with pytest.raises(AssertionError, match="heavy_reward imports transformers, by way of") as told:
        light("heavy-reward").test_its_entry_points_import_no_torch()  # type: ignore[attr-defined]
    assert re.search(r"by way of \S+heavy_reward\.py:\d+ > \S+heavy_parts\.py:2\n", str(told.value))
    assert 'register("NAME", "MODULE:CLASS", config=OPTIONS)' in str(told.value)
