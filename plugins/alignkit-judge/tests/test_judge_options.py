"""An option of the judge that counts only with another one is refused without it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_judge.options import BudgetOptions, JudgeModel, JudgePreferenceOptions, JudgeRewardOptions

from alignkit import OptionsError

if TYPE_CHECKING:
    from pathlib import Path

SERVER = {"model": "m", "base_url": "http://h/v1"}
OF_SERVERS: dict[str, Any] = {
    "base_url": "http://h/v1",
    "key_env": "MY_KEY",
    "structured": "text",
    "top_logprobs": 5,
    "price_in": 1.0,
    "price_out": 2.0,
}
OF_LOCAL: dict[str, Any] = {"min_mass": 0.9, "batch_tokens": 99, "dtype": "float32"}
OF_REASONING: dict[str, Any] = {"temperature": 0.7, "reply_tokens": 99}
OF_ALL_SERVERS: dict[str, Any] = {
    "concurrency": 2,
    "retry": {"timeout": 5.0},
    "budget": {"requests": 9},
    "keep_replies": True,
}
OF_ALL_JUDGES = {"judges", "rubric", "criterion", "constitution", "reasoning", "samples", "cache"}
OF_RANKING = {"protocol", "orders", "responses", "k", "min_margin", "abstentions"}


@pytest.fixture
def local(tmp_path: Path) -> dict[str, Any]:
    return {"backend": "local", "model": str(tmp_path)}


def refused(option: str, **options: Any) -> str:
    with pytest.raises(OptionsError) as error:
        JudgePreferenceOptions(**options)
    assert [".".join(problem.key) for problem in error.value.problems] == [option]
    return error.value.problems[0].what


def test_no_option_is_left_out() -> None:
    of_a_model = {"backend", "model", *OF_SERVERS, *OF_LOCAL, *OF_REASONING}
    assert {one.name for one in fields(JudgeModel)} == of_a_model
    of_a_panel = {*of_a_model, *OF_ALL_SERVERS, *OF_ALL_JUDGES}
    assert {one.name for one in fields(JudgeRewardOptions)} == of_a_panel
    assert {one.name for one in fields(JudgePreferenceOptions)} == {*of_a_panel, *OF_RANKING}


@pytest.mark.parametrize("option", [*OF_SERVERS, *OF_ALL_SERVERS])
def test_what_only_servers_use(option: str, local: dict[str, Any]) -> None:
    given = {**OF_SERVERS, **OF_ALL_SERVERS}[option]
    assert refused(option, **local, **{option: given}) == "has no effect without backend = 'openai'"
    JudgeRewardOptions(**{**SERVER, "budget": {}, option: given, "key_env": ""})


@pytest.mark.parametrize("option", OF_LOCAL)
def test_what_only_local_judges_use(option: str, local: dict[str, Any]) -> None:
    given = {option: OF_LOCAL[option]}
    assert refused(option, **SERVER, **given) == "has no effect without backend = 'local'"
    JudgeRewardOptions(**local, **given)


@pytest.mark.parametrize("option", OF_REASONING)
def test_what_a_local_judge_uses_while_it_reasons(option: str, local: dict[str, Any]) -> None:
    given = {option: OF_REASONING[option]}
    assert refused(option, **local, **given) == "has no effect without reasoning = true"
    JudgeRewardOptions(**local, **given, reasoning=True)
    JudgeRewardOptions(**SERVER, **given)


def test_each_judge_of_a_panel_is_checked(local: dict[str, Any]) -> None:
    assert refused("judges.1.dtype", judges=[SERVER, {**SERVER, "dtype": "float32"}]).endswith("backend = 'local'")
    assert refused("judges.0.temperature", judges=[{**local, "temperature": 1.0}, SERVER]).endswith("reasoning = true")
    mixed = JudgeRewardOptions(judges=[local, SERVER], concurrency=2)  # type: ignore[arg-type]
    assert [judge.backend for judge in mixed.panel] == ["local", "openai"]


@pytest.mark.parametrize("option", [*OF_SERVERS, *OF_LOCAL, *OF_REASONING])
def test_beside_several_judges_one_has_no_options(option: str) -> None:
    given = {**OF_SERVERS, **OF_LOCAL, **OF_REASONING}[option]
    assert refused(option, judges=[SERVER], **{option: given}) == "can't be combined with judges"


@pytest.mark.parametrize("other", ["criterion", "constitution"])
def test_a_rubric_beside_other_words(other: str, tmp_path: Path) -> None:
    (tmp_path / "principles.txt").write_text("Be kind.\n")
    given = {other: "Which is shorter?" if other == "criterion" else str(tmp_path / "principles.txt")}
    assert refused("rubric", **SERVER, rubric="honest", **given) == f"can't be combined with a {other}"
    JudgeRewardOptions(**SERVER, **given)


def test_what_only_some_protocols_use(local: dict[str, Any]) -> None:
    assert refused("orders", **SERVER, protocol="pointwise", orders="one").endswith("'pairwise' or 'listwise'")
    for protocol in ("pairwise", "listwise"):
        assert refused("top_logprobs", **SERVER, protocol=protocol, top_logprobs=5).endswith("protocol = 'pointwise'")
        assert "backend = 'local' or" in refused("min_margin", **SERVER, protocol=protocol, min_margin=0.2)
        JudgePreferenceOptions(**local, protocol=protocol, min_margin=0.2, orders="one")
    JudgePreferenceOptions(**SERVER, protocol="pointwise", min_margin=0.2, top_logprobs=5)


def test_samples_are_not_counted_where_none_are_drawn() -> None:
    responses = {"plugin": "function", "function": "os.path:join"}
    assert refused("k", **SERVER, responses=responses, k=4) == "can't be combined with responses"
    JudgePreferenceOptions(**SERVER, responses=responses)


def test_a_budget_without_a_limit_never_ends() -> None:
    assert refused("budget.then", **SERVER, budget={"then": "use"}).startswith("has no effect without a limit")
    for limit in ("requests", "tokens", "money"):
        assert BudgetOptions(**{limit: 9}, then="use").then == "use"  # type: ignore[arg-type]
