"""Alarms: each on series made by hand, resumed in the middle, with each action, and in runs that do go wrong."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import pytest
from alignkit_grpo.members import DAPO, RLOO
from alignkit_grpo.options import DAPOOptions, GRPOOptions
from alignkit_ppo.options import PPOOptions
from alignkit_ppo.ppo import PPO

from alignkit.algorithms import OnlineAlgorithm, OnlineOptions
from alignkit.batch import GroupBatch
from alignkit.checking import OptionsError
from alignkit.errors import InputError, StoppedByCheck
from alignkit.interfaces import PreferenceSource, RewardSource
from alignkit.ops.rollouts import repeated_tokens
from alignkit.options import AlarmOptions, Config
from alignkit.plugins import Registration, Registry
from alignkit.recipe.describe import describe
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import recipe_of
from alignkit.records import Group, Prompt
from alignkit.runs.plan import check_figures
from alignkit.runs.reporting import Reporter
from alignkit.runs.results import Run
from alignkit.runs.run import run_recipe
from alignkit.testing import TinyOptions, TinyPolicy
from alignkit.training.alarms import Alarms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from alignkit.companions import Alarm
    from alignkit.recipe.resolved import Resolved

BATCH = cast("GroupBatch", None)
"""Alarms look at figures, not at the batch."""


def nothing(factor: float) -> None:
    raise AssertionError(f"raises the KL by {factor}")


def watch(figure: str, series: Sequence[float], **options: Any) -> list[tuple[int, Alarm]]:
    """(number of the batch, from 1, alarm) of the alarms on a figure's values, one a batch."""
    alarms, found = Alarms(AlarmOptions(**options), nothing), []
    for number, value in enumerate(series, start=1):
        alarms.observe(BATCH, step=10 * number)
        found += [(number, alarm) for alarm in alarms.check({figure: value})]
        assert alarms.check({figure: value}) == (), "a batch is judged once"
    return found


FAR, NEAR = 30.5, 30.0


@pytest.mark.parametrize(
    ("figure", "series", "at"),
    [
        ("kl", [1, FAR, FAR, FAR, FAR], [4]),
        ("kl", [FAR, FAR, NEAR, FAR, FAR, NEAR], []),
        ("kl", [FAR] * 9, [3]),
        ("kl", [FAR] * 3 + [NEAR, NEAR] + [FAR] * 4, [3]),
        ("kl", [FAR] * 3 + [NEAR] * 3 + [FAR] * 4, [3, 9]),
        ("kl", [FAR] * 3 + [NEAR, NEAR, FAR, NEAR, NEAR, NEAR, FAR, FAR, FAR], [3, 12]),
        ("kl", [-1, NEAR, NEAR, NEAR, 0], []),
        ("entropy", [1, 2, 3, 0.39, 0.39, 0.39], [6]),
        ("entropy", [1, 2, 3, 0.41, 0.39, 0.39, 9, 9, 9], []),
        ("response_length", [8, 12, 10, 20.5, 20.5, 20.5], [6]),
        ("response_length", [8, 12, 10, 4.9, 4.9, 4.9], [6]),
        ("response_length", [8, 12, 10, 20, 20, 20, 5, 5, 5], []),
        ("response_length", [8, 12, 10, 20.5, 4.9, 20.5], [6]),
        ("repetition", [0.1, 0.3, 0.2, 0.41, 0.41, 0.41], [6]),
        ("repetition", [0.1, 0.3, 0.2, 0.39, 0.39, 0.39, 0, 0, 0], []),
        ("repetition", [0.9] * 9, []),
        ("finished", [0.49, 0.49, 0.49], [3]),
        ("finished", [0.5, 0.5, 0.5, 1, 1, 1], []),
        ("gold_drop", [0, 4.6, 0, 0], [2]),  # a moving mean need not last
        ("gold_drop", [4.6, 0, 0, 4.6, 0, 0, 0, 4.6], [1, 8]),
        ("gold_drop", [0, 4.5, 4.5, 4.5, 0], []),
        ("reward", [1e9, -1e9, 1e9, 1e9, 1e9], []),
        ("kl", [float("nan")] * 9, []),
    ],
)
def test_an_alarm_is_given_once_it_has_lasted_and_again_once_it_was_over(
    figure: str, series: list[float], at: list[int]
) -> None:
    assert [number for number, _ in watch(figure, series)] == at


@pytest.mark.parametrize(("batches", "at"), [(1, [2, 4]), (2, [5]), (3, [6]), (4, [])])
def test_the_number_of_batches_is_an_option(batches: int, at: list[int]) -> None:
    series = [10, 25, 15, 25, 25, 25, 5] if batches == 1 else [10, 10, 10, 25, 25, 25, 10]
    found = watch("response_length", series, alarm_batches=batches)
    assert [number for number, _ in found] == at


@pytest.mark.parametrize(
    ("option", "figure", "series"),
    [
        ("alarm_kl", "kl", [99] * 3),
        ("alarm_entropy", "entropy", [1] * 3 + [0.01] * 3),
        ("alarm_length", "response_length", [1] * 3 + [9] * 3),
        ("alarm_repetition", "repetition", [0] * 3 + [1] * 3),
        ("alarm_cut_off", "finished", [0] * 3),
        ("alarm_gold", "gold_drop", [0, 0, 9]),
    ],
)
def test_a_threshold_of_zero_is_none(option: str, figure: str, series: list[float]) -> None:
    ((number, alarm),) = watch(figure, series)
    assert (number, alarm.record["alarm"], alarm.stops) == (len(series), option, False)
    assert watch(figure, series, **{option: 0}) == []


def test_an_alarm_says_what_it_means_and_what_to_do() -> None:
    ((_, alarm),) = watch("response_length", [8, 12, 10] + [25] * 3)
    assert alarm == (
        "The mean length of a response, in tokens, is 25, above 20 (alarm_length = 2, first batches 10): the reward "
        "may favour length. Read some responses; raise the KL weight, or a penalty for length."
    )
    assert alarm.record == {"step": 61, "alarm": "alarm_length", "value": 25, "threshold": 20}
    ((_, alarm),) = watch("response_length", [8, 12, 10] + [2] * 3)
    assert "is 2, below 5 (alarm_length = 2, first batches 10): the reward may favour brevity." in alarm
    ((_, alarm),) = watch("kl", [42.25] * 3)
    assert alarm.startswith("The mean KL to the reference, in nats per response, is 42.2, above 30 (alarm_kl): the ")
    ((_, alarm),) = watch("finished", [0.25] * 3)
    assert alarm.startswith("The share of responses that end before the limit is 0.25, below 0.5 (alarm_cut_off): ")
    ((_, alarm),) = watch("finished", [0.25] * 3, alarm_cut_off=0.25 + 0.05)
    assert "is 0.25, below 0.7 (alarm_cut_off = 0.3): the reward judges texts without an end" in alarm
    ((_, alarm),) = watch("entropy", [2] * 3 + [0.1] * 3)
    assert "nats per token, is 0.1, below 0.4 (alarm_entropy = 0.2, first batches 2): the policy says" in alarm
    ((_, alarm),) = watch("repetition", [0.125] * 3 + [0.5] * 3)
    assert "is 0.5, above 0.325 (alarm_repetition = 0.2, first batches 0.125): the policy repeats itself" in alarm
    ((_, alarm),) = watch("gold_drop", [5] * 3)
    assert "is 5, above 4.5 (alarm_gold): the reward rises, but what it stands for falls" in alarm


def test_the_limit_of_the_kl_stops_at_once() -> None:
    (first, second) = watch_unjudged("kl", [6.5, 6.6, 6.6], max_kl=6.5)
    assert [first[0], second[0]] == [2, 3]
    assert first[1].stops
    assert "is 6.6, above 6.5 (max_kl): the policy is far" in first[1]


def watch_unjudged(figure: str, series: Sequence[float], **options: Any) -> list[tuple[int, Alarm]]:
    """Like `watch`, for alarms that stop the run, which leave their batch to the run that is resumed."""
    alarms, found = Alarms(AlarmOptions(**options), nothing), []
    for number, value in enumerate(series, start=1):
        alarms.observe(BATCH, step=number)
        before = json.dumps(alarms.state_dict())
        again = [alarms.check({figure: value}) for _ in range(2)]
        if again[0]:
            assert again[0] == again[1]
            assert json.dumps(alarms.state_dict()) == before
        found += [(number, alarm) for alarm in again[0]]
    return found


def test_an_alarm_may_stop_the_run_and_stops_the_resumed_one_too() -> None:
    ((number, alarm),) = watch_unjudged("finished", [0, 0, 0], on_alarm="stop")
    assert (number, alarm.stops) == (3, True)


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_resumed_run_gives_the_same_alarms(cut: int) -> None:
    series = [10, 12, 11, 25, 25, 25, 11, 11, 11, 25, 25, 25]
    parts: list[int] = []
    alarms = Alarms(AlarmOptions(), nothing)
    for number, value in enumerate(series, start=1):
        alarms.observe(BATCH, step=number)
        if number in (cut, cut + 3):  # within a batch: before it is judged, and after
            alarms = resumed(alarms)
        parts += [number for _ in alarms.check({"response_length": value})]
        if number in (cut, cut + 2):
            alarms = resumed(alarms)
            assert alarms.check({"response_length": value}) == ()
    assert parts == [6, 12]


def resumed(alarms: Alarms) -> Alarms:
    state = json.loads(json.dumps(alarms.state_dict()))
    other = Alarms(AlarmOptions(), nothing)
    other.load_state_dict(state)
    return other


def test_an_alarm_may_raise_the_weight_of_the_kl() -> None:
    raised: list[float] = []
    options = PPOOptions(on_alarm="raise-kl", alarm_batches=2)
    alarms, told = Alarms(options, raised.append), []
    for number in range(1, 8):
        alarms.observe(BATCH, step=number)
        told += alarms.check({"kl": 31.0, "finished": 0.1})
        assert len(raised) == (number >= 2), "once for both alarms"
    assert raised == [1.5]
    assert [alarm.record["alarm"] for alarm in told] == ["alarm_kl", "alarm_cut_off"]
    assert all(alarm.endswith(" The KL weight is now 1.5 times as high.") and not alarm.stops for alarm in told)


@pytest.mark.parametrize(
    ("config", "given", "where"),
    [
        (PPOOptions, {"on_alarm": "raise-kl", "kl_coef": 0.0}, "on_alarm"),
        (PPOOptions, {"on_alarm": "raise-kl", "kl_controller": "linear"}, "on_alarm"),
        (OnlineOptions, {"on_alarm": "raise-kl"}, "on_alarm"),
        (DAPOOptions, {"alarm_kl": 3.0}, "alarm_kl"),
        (GRPOOptions, {"alarm_gold": 3.0}, "alarm_gold"),
        (AlarmOptions, {"alarm_length": 1.0}, "alarm_length"),
        (AlarmOptions, {"alarm_length": 0.5}, "alarm_length"),
        (AlarmOptions, {**{f"alarm_{name}": 0 for name in ("kl", "entropy", "length", "repetition", "cut_off", "gold")},
                        "max_kl": 5.0, "on_alarm": "stop"}, "on_alarm"),
    ],
)  # fmt: skip
def test_what_can_have_no_effect_is_refused(config: type[Config], given: dict[str, Any], where: str) -> None:
    with pytest.raises(OptionsError, match=rf"^{config.__name__} {where}: "):
        config(**given)


def test_what_has_an_effect_is_taken() -> None:
    gold = {"plugin": "tiny"}
    assert PPOOptions(on_alarm="raise-kl").can_raise_kl
    assert DAPOOptions(alarm_kl=3.0, track_kl=True).alarm_kl == 3
    assert GRPOOptions(alarm_gold=3.0, stop={"gold": gold}).alarm_gold == 3  # type: ignore[arg-type]
    assert AlarmOptions(alarm_length=1.01, on_alarm="stop").on_alarm == "stop"


class Bare(OnlineAlgorithm[OnlineOptions]):
    """Reports the KL at most."""

    def loss(self, batch: GroupBatch) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("option", "value", "figure"),
    [("alarm_entropy", 0.1, "entropy"), ("alarm_length", 3.0, "response_length"), ("alarm_cut_off", 0.1, "finished"),
     ("alarm_repetition", 0.0, "repetition")],
)  # fmt: skip
def test_a_rule_on_a_figure_that_nobody_reports_is_refused(option: str, value: float, figure: str) -> None:
    with pytest.raises(InputError, match=f"bare reports no {figure}") as refused:
        check_figures(Bare, OnlineOptions(**{option: value}), name="bare", table="optimizer")  # type: ignore[arg-type]
    assert refused.value.where == f"optimizer.{option}"
    check_figures(Bare, OnlineOptions(max_kl=3.0, alarm_kl=3.0), name="bare", table="optimizer")
    check_figures(RLOO, RLOO.Config(**{option: value}), name="rloo", table="optimizer")


def test_a_repeated_run_of_tokens_stands_earlier_in_its_own_response() -> None:
    groups = [Group(Prompt(text="p"), ("a", "b", "c")), Group(Prompt(text="q"), ("d",))]
    rows = [[[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4], [1, 2]], [[7] * 6]]
    assert repeated_tokens(GroupBatch.from_ids([[0], [0]], rows, groups)) == (1 + 2, 5 + 1 + 3)
    assert repeated_tokens(GroupBatch.from_ids([[0], [0]], rows, groups), length=2) == (3 + 4, 7 + 3 + 1 + 5)
    short = [[[1], [1], [1]], [[1]]]
    assert repeated_tokens(GroupBatch.from_ids([[0], [0]], short, groups)) == (0, 0)
    assert repeated_tokens(GroupBatch.from_ids([[0]], [[[1, 2], [3]]], [Group(Prompt(text="p"), ("a", "b"))])) == (0, 0)


class Longer(RewardSource[Config]):
    """Prefers long responses."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[len(response) / 8 for response in group.responses] for group in groups]


class Words(PreferenceSource[Config]):
    """Prompts."""

    def preferences(self, ask: Any) -> Iterator[Group]:
        yield from (Group(Prompt(text=text), ("",)) for text in ("a", "b", "ab", "ba"))


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


ONLY_LENGTH = {f"alarm_{name}": 0 for name in ("kl", "entropy", "repetition", "cut_off")}


def recipe(**options: Any) -> Resolved:
    """PPO on a reward that prefers long responses."""
    entries: list[tuple[str, str, Any, Any]] = [
        ("policy", "hf", TinyPolicy, TinyOptions),
        ("optimizer", "ppo", PPO, PPOOptions),
        ("optimizer", "dapo", DAPO, DAPOOptions),
        ("preferences", "words", Words, Config),
        ("reward", "longer", Longer, Config),
    ]
    registry = Registry([Registration(role, name, target, config, "tests") for role, name, target, config in entries])
    optimizer = {"plugin": "ppo", "learning_rate": 0.2, "lr_schedule": "constant", "kl_coef": 0.01, "iterations": 10,
                 "batch_size": 4, "group_size": 8, "minibatch_size": 2, "n_epochs": 1, "bootstrap_truncated": False,
                 "missing_eos_penalty": 0.0, **options}  # fmt: skip
    tables = {
        "run": {"holdout": 0.0},
        "policy": {"alphabet": "ab", "hidden": 4, "window": 2},
        "prompts": {"plugin": "words"},
        "reward": {"plugin": "longer"},
        "optimizer": optimizer,
        "sampling": {"max_tokens": 16},
    }
    return resolve(recipe_of(tables, flags={}, options={}), registry)


def text_of(page: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", page.replace("&#39;", "'")).split())


def test_a_reward_that_favours_length_trips_an_alarm(tmp_path: Path) -> None:
    reporter = Notes()
    summary = run_recipe(recipe(), tmp_path / "run", reporter=reporter)
    run = Run.open(tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    alarms = [record for record in records if "alarm" in record]
    steps = [record for record in records if "loss" in record]
    assert run.metrics == steps
    by_name = {record["alarm"]: record for record in alarms}
    assert len(by_name) == len(alarms), "each once"
    long = by_name["alarm_length"]
    lengths = [record["response_length"] for record in steps[::2]]
    first = sum(lengths[:3]) / 3
    beyond = [length > 2 * first for length in lengths]
    batch = next(number for number in range(5, 10) if all(beyond[number - 2 : number + 1]))
    assert (long["stage"], long["step"]) == ("policy", 2 * batch + 1)
    assert long["value"] == lengths[batch]
    assert long["threshold"] == pytest.approx(2 * first, rel=1e-5)
    told = [record["text"] for record in alarms]
    assert summary["align"]["alarms"] == run.summary["align"]["alarms"] == told
    assert [note for note in reporter.notes if note.startswith("alarm: ")] == [f"alarm: {text}" for text in told]
    page = text_of((tmp_path / "run" / "report.html").read_text())
    assert f"Alarms policy, before step {alarms[0]['step']:.0f} : {told[0]}" in page
    assert long["text"] in page


def test_an_alarm_may_end_a_run_that_goes_on_once_it_may(tmp_path: Path) -> None:
    out, reporter = tmp_path / "run", Notes()
    stopping = {"on_alarm": "stop", **ONLY_LENGTH}
    with pytest.raises(StoppedByCheck, match=r"^step \d+: The mean length of a response") as stopped:
        run_recipe(recipe(**stopping), out, reporter=reporter)
    assert stopped.value.exit_code == 3
    assert not [note for note in reporter.notes if note.startswith("alarm")], "the error says it"
    (alarm,) = [record for record in lines(out) if "alarm" in record]
    assert str(stopped.value) == f"step {alarm['step'] - 1:.0f}: {alarm['text']}"
    assert alarm["text"] in text_of((out / "report.html").read_text())
    before = (out / "metrics.jsonl").read_text()
    with pytest.raises(StoppedByCheck) as again:
        run_recipe(recipe(**stopping), out, resume=True, reporter=Reporter())
    assert str(again.value) == str(stopped.value)
    assert len(lines(out)) == len(before.splitlines())
    warning = {**stopping, "on_alarm": "warn"}
    summary = run_recipe(recipe(**warning), out, resume=True, force=True, reporter=Reporter())
    whole = run_recipe(recipe(**warning), tmp_path / "whole", reporter=Reporter())
    assert summary["align"]["alarms"] == whole["align"]["alarms"] == [alarm["text"]]
    assert summary["align"]["metrics"] == {**whole["align"]["metrics"], "tokens_per_s": mock.ANY}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_raised_weight_holds_from_the_next_batch_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_recipe(recipe(on_alarm="raise-kl", **ONLY_LENGTH), out, reporter=Reporter())
    (alarm,) = [record for record in lines(out) if "alarm" in record]
    coefs = {record["step"]: record["kl_coef"] for record in lines(out) if "loss" in record}
    assert {step: coef for step, coef in coefs.items() if step < alarm["step"] + 2 and coef != 0.01} == {}
    assert {coef for step, coef in coefs.items() if step >= alarm["step"] + 2} == {0.015}


def test_a_healthy_run_gives_no_alarm(tmp_path: Path) -> None:
    options = {"learning_rate": 0.0, "kl_coef": 0.05, "iterations": 8, "batch_size": 8}
    summary = run_recipe(recipe(**options), tmp_path / "run", reporter=Reporter())
    assert "alarms" not in summary["align"]
    page = (tmp_path / "run" / "report.html").read_text().rpartition("</style>")[2]
    assert "larm" not in text_of(page).partition("Recipe")[0]


@pytest.mark.parametrize("component", [PPOOptions, DAPOOptions])
def test_alarms_have_a_heading_of_their_own(component: type[Config]) -> None:
    shown = {option.key: option.group for option in describe(component)}
    assert {key for key, group in shown.items() if group == "Alarms"} == {
        *AlarmOptions.figures,
        "alarm_batches",
        "on_alarm",
    }
