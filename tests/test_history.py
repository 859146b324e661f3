"""What is called unseen is unseen: one split for all stages, and a record of what each model was trained on."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from pipeline_parts import PROMPTS, Recorder, tiny_registry

import alignkit
from alignkit import Group, PreferenceSource, Prompt, Run, cli, read_groups, write_groups
from alignkit.errors import InputError
from alignkit.options import Config, TrainingOptions
from alignkit.plugins import Registration
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import recipe_of
from alignkit.runs import api
from alignkit.runs.history import History, digest_of_prompt, history_of, recorded, split_by_prompt
from alignkit.runs.reporting import Reporter
from alignkit.runs.run import run_recipe
from alignkit.testing import TinyOptions, TinyPolicy
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignkit.recipe.resolved import Resolved

Tables = dict[str, dict[str, Any]]
MEASURED = PROMPTS[:5]
SEEN = MEASURED[:2]
OTHERS = PROMPTS[5:9]


def by_hand(text: str) -> str:
    return hashlib.sha256(f'[["user", "{text}"]]'.encode()).hexdigest()[:16]


def held_out_by_hand(text: str, share: float) -> bool:
    return int(by_hand(text), 16) / 2**64 < share


@dataclass(frozen=True, kw_only=True)
class RowsOptions(Config):
    """Options of `rows`."""

    prompts: tuple[str, ...]
    """Its prompts."""
    ranked: bool = False
    """Two ranked responses instead of one."""
    chat: bool = False
    """As messages with a system turn and more white space."""


class Rows(PreferenceSource[RowsOptions]):
    """Groups from the options."""

    def preferences(self, ask: Any) -> Iterator[Group]:
        ranked = self.config.ranked
        for text in self.config.prompts:
            turns = [{"role": "system", "content": "x"}, {"role": "user", "content": text.replace(" ", " \n")}]
            prompt = Prompt.of(turns if self.config.chat else text)
            yield Group(prompt, ("aa", "b") if ranked else ("aa",), ranks=(0, 1) if ranked else None)


def rows(prompts: list[str], **more: Any) -> dict[str, Any]:
    return {"plugin": "rows", "prompts": prompts, **more}


def recipe(tables: Tables, **options: Any) -> Resolved:
    registry = tiny_registry()
    registry.registrations.append(Registration("preferences", "rows", Rows, RowsOptions, "tests"))
    base: Tables = {"policy": {}, "sampling": {"max_tokens": 4}, "reward": {"plugin": "tiny"}}
    dotted = {key.replace("__", "."): value for key, value in options.items()}
    return resolve(recipe_of({**base, **tables}, flags={}, options=dotted), registry)


def run(out: Path, tables: Tables, **options: Any) -> dict[str, Any]:
    return run_recipe(recipe(tables, **options), out, reporter=Reporter())


MARGIN = {"optimizer": {"plugin": "margin"}}
REINFORCE = {"optimizer": {"plugin": "reinforce", "iterations": 1, "batch_size": 2, "group_size": 2}}
PTX = {"optimizer": {**REINFORCE["optimizer"], "ptx_coef": 0.5}}
LEAKS: dict[str, Tables] = {
    "demonstrations": {"demonstrations": rows(SEEN), "sft": {}, "prompts": rows(OTHERS), **REINFORCE},
    "demonstrations as chats": {
        "demonstrations": rows(SEEN, chat=True), "sft": {}, "prompts": rows(OTHERS), **REINFORCE,
    },
    "preferences": {"preferences": rows([*SEEN, *OTHERS], ranked=True), **MARGIN},
    "prompts": {"prompts": rows([*SEEN, *OTHERS]), **REINFORCE},
    "ptx": {"prompts": rows(OTHERS), "ptx": rows(SEEN), **PTX},
}  # fmt: skip


@pytest.mark.parametrize("stage", LEAKS)
def test_prompts_that_any_stage_was_trained_on_are_counted_and_said_first(tmp_path: Path, stage: str) -> None:
    tables = {"run": {"holdout": 0.0}, "eval": {"prompts": rows(MEASURED)}, **LEAKS[stage]}
    said = run(tmp_path / "out", tables)["eval"]
    assert next(iter(said)) == "on"
    assert said["on"].startswith("5 prompts, 2 of them trained on")
    assert (said["prompts"], said["trained_on"]) == (5, 2)
    summary = Run.open(tmp_path / "out").summary
    assert next(iter(summary.items())) == ("measured_on", said["on"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "on 5 prompts, 2 of them trained on" in page.partition("</header>")[0]


@pytest.mark.parametrize("optimizer", [MARGIN, REINFORCE])
def test_a_prompt_is_held_out_in_every_stage_or_in_none(tmp_path: Path, optimizer: Tables) -> None:
    share = 0.4
    tables: Tables = {
        "run": {"holdout": share},
        "demonstrations": rows([*PROMPTS[:8], *PROMPTS[:8]]),
        "sft": {},
        "preferences": rows(PROMPTS[2:], ranked=True),
        "prompts": rows([*PROMPTS[15:], *PROMPTS[:7]]),
        **optimizer,
    }
    out = tmp_path / "out"
    said = run(out, tables)["eval"]
    held = {text for text in PROMPTS if held_out_by_hand(text, share)}
    measured = {group.prompt.plain for group in read_groups(out / "samples.jsonl")}
    assert measured == held & {*PROMPTS[15:], *PROMPTS[:7]}
    assert (said["prompts"], said["trained_on"]) == (len(measured), 0)
    seen = set(json.loads((out / "policy" / "trained_on.json").read_text())["prompts"])
    trained = {*PROMPTS[:8], *(PROMPTS[2:] if optimizer is MARGIN else [*PROMPTS[15:], *PROMPTS[:7]])}
    assert seen == {by_hand(text) for text in trained - held}
    demonstrations = [group.prompt.plain for group in read_groups(out / "demonstrations.jsonl")]
    assert len(demonstrations) == 2 * len(set(PROMPTS[:8]) - held)


def test_the_split_knows_no_order_no_seed_no_duplicates_and_no_neighbours() -> None:
    texts = [f"prompt {number}" for number in range(400)]
    groups = [Group(Prompt(text=text), ("r",)) for text in texts * 2]
    held = {group.prompt.plain for group in split_by_prompt(groups, 0.25)[1]}
    assert held == {text for text in texts if held_out_by_hand(text, 0.25)}
    assert abs(len(held) - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5
    random.Random(0).shuffle(groups)
    rest, again = split_by_prompt(groups[:300], 0.25)
    assert all(group.prompt.plain in held for group in again)
    assert not any(group.prompt.plain in held for group in rest)
    wider = {group.prompt.plain for group in split_by_prompt(groups, 0.5)[1]}
    assert held < wider
    assert split_by_prompt(groups, 0.0)[1] == []


def test_the_same_question_has_one_digest_in_every_form() -> None:
    turn = {"role": "user", "content": "Name a prime."}
    forms = [
        Prompt(text="Name a prime."),
        Prompt(text=" Name a\nprime. ", meta={"answer": "7"}),
        Prompt.of([turn]),
        Prompt.of([{"role": "system", "content": "Be brief."}, turn]),
    ]
    assert {digest_of_prompt(prompt) for prompt in forms} == {by_hand("Name a prime.")}
    others = [
        Prompt(text="Name a Prime!"),
        Prompt.of([turn, {"role": "assistant", "content": "7"}, turn]),
        Prompt.of([{**turn, "role": "assistant"}]),
        Prompt.of([{"role": "system", "content": "Name a prime."}]),
        Prompt.of([turn, {"role": "assistant", "content": None, "tool_calls": [{"name": "is_prime"}]}, turn]),
    ]
    assert len({digest_of_prompt(prompt) for prompt in [*forms, *others]}) == 6


def test_nothing_is_held_out_where_nothing_is_measured_and_an_empty_prompt_never_is(tmp_path: Path) -> None:
    assert run(tmp_path / "out", {"demonstrations": rows(PROMPTS), "sft": {}})["sft"]["demonstrations"] == 20
    assert split_by_prompt([Prompt(text=" ")], 0.999)[1] == []


def test_a_run_whose_data_is_all_held_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all of the training data is held out") as error:
        run(tmp_path / "out", {"run": {"holdout": 0.999}, "prompts": rows(PROMPTS), **REINFORCE})
    assert error.value.where == "run.holdout"


def test_another_seed_or_share_for_the_evaluation_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables: Tables = {"run": {"holdout": 0.4}, "prompts": rows(PROMPTS), **REINFORCE}
    out = tmp_path / "out"
    first = run(out, tables)["eval"]
    again = run_recipe(recipe(tables, run__seed=9), out, stages=["eval"], reporter=Reporter())["eval"]
    assert (first["prompts"], first["trained_on"]) == (again["prompts"], again["trained_on"])
    assert first["trained_on"] == 0
    wider = run_recipe(recipe(tables, run__holdout=0.9), out, stages=["eval"], reporter=Reporter())["eval"]
    assert wider["trained_on"] == wider["prompts"] - first["prompts"] > 0
    recorder = Recorder()
    none = run_recipe(recipe(tables, run__holdout=0), out, stages=["eval"], reporter=recorder)["eval"]
    assert none["on"].startswith(f"20 prompts, {20 - first['prompts']} of them trained on")
    assert f"eval: on {none['on']}" in recorder.notes
    assert cli.run(["runs", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split()[1:4] == ["reinforce:", "align,", "eval;"]


def test_what_earlier_runs_trained_on_comes_with_their_models(tmp_path: Path) -> None:
    run(tmp_path / "first", {"demonstrations": rows(SEEN), "sft": {}})
    tables: Tables = {"policy": {"model": str(tmp_path / "first/sft")}, "prompts": rows(OTHERS), **REINFORCE}
    said = run(tmp_path / "second", {**tables, "eval": {"prompts": rows(MEASURED)}})["eval"]
    assert said["trained_on"] == 2
    assert said["unknown_before"] == ["TinyOptions"]


def test_training_in_python_leaves_a_record_too(tmp_path: Path) -> None:
    from pipeline_parts import Margin

    groups = [Group(Prompt(text=text), ("aa", "b"), ranks=(0, 1)) for text in SEEN]
    margin = Margin(TrainingOptions(), policy=TinyPolicy(TinyOptions()))
    api.train(margin, groups, out=tmp_path / "model", progress=False)
    assert recorded(tmp_path / "model") == History(frozenset(map(by_hand, SEEN)), frozenset(["TinyOptions"]))


def test_a_model_of_unknown_history_is_said_to_be_one(tmp_path: Path) -> None:
    tables: Tables = {"run": {"holdout": 0.4}, "prompts": rows(PROMPTS), **REINFORCE}
    out = tmp_path / "out"
    TinyPolicy(TinyOptions()).save(tmp_path / "plain")
    run(out, tables)
    (out / "policy" / "trained_on.json").unlink()
    said = run_recipe(recipe(tables), out, stages=["eval"], reporter=Reporter())["eval"]
    unknown = " and ".join(sorted(["TinyOptions", str(out / "policy")]))
    assert said["on"] == f"9 prompts, none of them trained on since {unknown}, whose own training is unknown"
    alone: Tables = {"policy": {"model": str(tmp_path / "plain")}, "eval": {"prompts": rows(MEASURED)}}
    against = recipe(alone, eval__against=str(out / "policy"))
    said = run_recipe(against, tmp_path / "new", stages=["eval"], reporter=Reporter())["eval"]
    assert said["unknown_before"] == sorted([str(out / "policy"), str(tmp_path / "plain")])


def test_only_a_whole_history_without_these_prompts_makes_them_unseen(tmp_path: Path) -> None:
    prompts = [Prompt(text=text) for text in MEASURED]
    History().write(tmp_path)
    known = history_of(tmp_path)
    assert known.of_measuring_on(prompts)["on"] == "5 unseen prompts"
    known.and_of([Group(prompts[0], ("r",))]).write(tmp_path)
    assert history_of(tmp_path).of_measuring_on(prompts)["on"] == "5 prompts, 1 of them trained on"
    more = history_of(tmp_path, {"one": {"model": str(tmp_path)}, "two": ["x" * 999, "\0", "\ud800"]})
    assert more == history_of(tmp_path)
    (tmp_path / "trained_on.json").write_text('{"prompts": 5}')
    with pytest.raises(InputError, match="is damaged") as error:
        history_of(tmp_path)
    assert error.value.where == str(tmp_path / "trained_on.json")


def test_what_a_reward_model_was_trained_on_counts_too(tmp_path: Path) -> None:
    model = str(write_tiny_llama(tmp_path / "model"))
    data = {"pairs": [*SEEN, *OTHERS], "others": OTHERS, "measured": MEASURED}
    for name, texts in data.items():
        write_groups(tmp_path / f"{name}.jsonl", [Group(Prompt(text=t), ("aa", "b"), ranks=(0, 1)) for t in texts])
    path = {name: {"plugin": "dataset", "path": str(tmp_path / f"{name}.jsonl")} for name in data}
    optimizer = {"plugin": "ppo", "iterations": 1, "batch_size": 2, "group_size": 2, "minibatch_size": 2}
    tables: Tables = {
        "run": {"holdout": 0.0, "device": "cpu"}, "policy": {"model": model}, "sampling": {"max_tokens": 4},
        "preferences": path["pairs"], "prompts": path["others"], "reward": {"plugin": "model"},
        "optimizer": optimizer, "eval": {"prompts": path["measured"]},
    }  # fmt: skip
    said = alignkit.run(tables, out=tmp_path / "out", progress=False).summary
    unknown = f"of them trained on since {model}, whose own training is unknown"
    assert said["reward"]["on"] == f"6 prompts, 6 {unknown}"
    assert said["eval"]["on"] == f"5 prompts, 2 {unknown}"
    seen = recorded(tmp_path / "out" / "policy")
    assert seen is not None
    assert seen.prompts == {by_hand(text) for text in data["pairs"]}
