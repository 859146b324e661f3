"""`alignkit.run` and `Run` on a tiny Llama: the command line's results and its checks, and what a run has left."""

from __future__ import annotations

import json
import os
import signal
import threading
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import python_material
import tomli_w
from alignkit_dpo.dpo import DPO
from alignkit_hf.policy import HFPolicy
from python_material import PAIRS, SIGNALS, Tables, dpo_tables, letters, online_tables, saved, weights, write_material

import alignkit
from alignkit import Group, InputError, Interrupted, PluginError, Run, cli
from alignkit.records import read_groups, write_groups
from alignkit.runs.results import from_reports

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("api"))


@pytest.fixture
def tables(folder: Path) -> Tables:
    return dpo_tables(folder)


@pytest.fixture(scope="module")
def dpo(folder: Path) -> Run:
    """A finished run."""
    options = {"optimizer.beta": 0.3}
    return alignkit.run(dpo_tables(folder), optimizer="dpo", options=options, out=folder / "dpo", progress=False)


def untimed(value: Any) -> Any:
    """A summary without what differs between a run and one that was resumed."""
    if not isinstance(value, dict):
        return value
    timed = ("out", "seconds", "train_seconds", "tokens_per_s", "tokens")
    return {key: untimed(inner) for key, inner in value.items() if key not in timed}


def test_a_run_is_that_of_the_command_line_bit_for_bit(
    folder: Path, tables: Tables, dpo: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(tables))
    words = ["run", str(tmp_path / "recipe.toml"), "--optimizer", "dpo", "-o", "optimizer.beta=0.3", "--json"]
    assert cli.run([*words, "--out", str(tmp_path / "cli")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert weights(tmp_path / "cli/policy") == weights(dpo.path / "policy") != weights(folder / "model")
    assert untimed(printed) == untimed(dpo.summary)
    assert printed["out"] == str(tmp_path / "cli")
    assert dpo.summary["out"] == str(folder / "dpo")
    recipes = [tomllib.loads((path / "recipe.toml").read_text()) for path in (tmp_path / "cli", dpo.path)]
    assert recipes[0] == recipes[1]
    assert recipes[0]["optimizer"]["beta"] == 0.3


def test_what_a_run_left(dpo: Run) -> None:
    assert [(record["stage"], record["step"]) for record in dpo.metrics] == [("policy", step) for step in (1, 2, 3)]
    assert dpo.summary["align"]["steps"] == 3
    assert [group.source for group in dpo.samples] == ["start", "policy"] * 2
    assert dpo.samples == list(read_groups(dpo.path / "samples.jsonl"))
    with pytest.raises(InputError, match="this needs a reward"):
        dpo.reward()


def test_the_policy_is_the_aligned_one(folder: Path, dpo: Run, tmp_path: Path) -> None:
    policy = dpo.policy()
    assert isinstance(policy, HFPolicy)
    assert saved(policy, tmp_path / "again") == weights(dpo.path / "policy")


def test_a_run_is_opened_wherever_its_data_has_gone(
    folder: Path, dpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = (folder / "pairs.jsonl").rename(folder / "moved.jsonl")
    try:
        opened = Run.open(str(dpo.path))
        assert opened.summary == json.loads(json.dumps(dpo.summary))
        assert (opened.metrics, opened.samples) == (dpo.metrics, dpo.samples)
        assert saved(opened.policy(), tmp_path / "again") == weights(dpo.path / "policy")
    finally:
        kept.rename(folder / "pairs.jsonl")
    with pytest.raises(InputError, match="this directory holds no run"):
        Run.open(tmp_path)


def test_installed_distributions_report_on_a_run(dpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger_report.py").write_text(
        "def write_report(run):\n    return run.path / ('page of ' + ' and '.join(run.stages))\n"
        "def notebook_html(run):\n    raise KeyError('colour')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(name, "stranger_report", "alignkit.reports") for name in ("b", "a")]
    monkeypatch.setattr("alignkit.runs.results.entry_points", lambda group: {"alignkit.reports": points}[group])
    assert dpo.write_reports() == ", ".join([str(dpo.path / "page of preferences and align and eval")] * 2)
    with pytest.raises(PluginError, match="report a: KeyError: 'colour'"):
        dpo._repr_html_()
    assert from_reports("measures", [], {}, ()) == []
    points.clear()
    assert (dpo.write_reports(), dpo._repr_html_()) == ("", None)


def test_what_a_notebook_shows_is_escaped(tmp_path: Path, dpo: Run) -> None:
    assert repr(dpo) == f"Run({str(dpo.path)!r}: preferences, align, eval)"
    page = dpo._repr_html_() or ""
    assert "<td>align</td>" in page
    assert ", measured on 2 prompts, 2 of them trained on since " in page.splitlines()[0]
    assert len(page) < 4000
    odd = tmp_path / "<b>&"
    odd.mkdir()
    (odd / "run.json").write_text('{"stages": {}}')
    empty = Run.open(odd)
    assert repr(empty).endswith("<b>&': no stage is done)")
    page = empty._repr_html_() or ""
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert (empty.metrics, empty.samples) == ([], [])
    with pytest.raises(InputError, match="this run has not trained a policy"):
        empty.policy()


def test_stages_alone_a_trained_reward_and_the_policy_of_sft(folder: Path, tables: Tables, tmp_path: Path) -> None:
    demonstrations = [Group(group.prompt, group.responses[:1]) for group in PAIRS]
    write_groups(tmp_path / "demonstrations.jsonl", demonstrations)
    recipe = {name: tables[name] for name in ("run", "policy", "preferences")}
    recipe |= {"demonstrations": {"path": tmp_path / "demonstrations.jsonl"}, "reward": {"plugin": "model"}}
    out = tmp_path / "out"
    run = alignkit.run(recipe, stages="sft", out=out, progress=False)
    assert list(run.summary) == ["out", "sft"]
    assert saved(run.policy(), tmp_path / "again") == weights(out / "sft")
    with pytest.raises(InputError, match="reward model is not trained yet"):
        run.reward()
    run = alignkit.run(recipe, stages=["preferences", "reward"], out=out, progress=False)
    assert list(run.summary) == ["out", "sft", "preferences", "reward"]
    assert "accuracy" in run.summary["reward"]
    by_hand = alignkit.build_component("reward", {"plugin": "model", "model": str(out / "reward")})
    assert Run.open(out).reward().score(PAIRS) == run.reward().score(PAIRS) == by_hand.score(PAIRS)
    with pytest.raises(InputError, match="stage sft has already run here"):
        alignkit.run(recipe, stages="sft", out=out, progress=False)


@pytest.mark.parametrize(
    ("named", "options", "expected"),
    [
        ({}, {}, ("dpo", 1e-2, 0.1)),
        ({"optimizer": "ipo"}, {}, ("ipo", 1e-2, 0.1)),
        ({"optimizer": "ipo"}, {"optimizer.plugin": "dpo", "optimizer.beta": 0.5}, ("dpo", 1e-2, 0.5)),
        ({}, {"optimizer.learning_rate": 1, "optimizer.for.dpo.learning_rate": 2}, ("dpo", 1.0, 0.1)),
    ],
)
def test_default_recipe_name_options(
    tables: Tables, tmp_path: Path, named: dict[str, Any], options: dict[str, Any], expected: tuple[str, float, float]
) -> None:
    alignkit.run(tables, **named, options=options, stages="preferences", out=tmp_path, progress=False)
    chosen = tomllib.loads((tmp_path / "recipe.toml").read_text())["optimizer"]
    assert (chosen["plugin"], chosen["learning_rate"], chosen["beta"]) == expected


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ({"options": {"optimizer.beto": 0.3}}, 'options["optimizer.beto"]', "no such option"),
        ({"options": {"optimizer.beta": -1}}, 'options["optimizer.beta"]', "must be more than 0, found -1"),
        ({"options": {"optimizer.beta": "[1]"}}, 'options["optimizer.beta"]', "must be a valid number"),
        ({"options": {"policy.model": "12"}}, 'options["policy.model"]', "'12' is neither a folder"),
        ({"options": {3: 1}}, 'options["3"]', "'3' is not table.option"),
        ({"options": {"beta": 1}}, 'options["beta"]', "'beta' is not table.option"),
        ({"options": {"optimiser.beta": 1}}, 'options["optimiser.beta"]', "a recipe has no table 'optimiser'"),
        ({"options": ["optimizer.beta=1"]}, "options", "list is not a mapping"),
        ({"optimizer": "nobody"}, 'optimizer="nobody"', "no optimizer plugin 'nobody'"),
        ({"optimizer": DPO}, "optimizer", "is neither a plugin name nor a function"),
        ({"reward": lambda prompts: []}, "reward", "a recipe can't name the function"),
        ({"recipe": {"optimizer": {"plugin": "dpo", "beta": -2}}}, "optimizer.beta", "must be more than 0, found -2"),
        ({"recipe": {"optimiser": {}}}, "optimiser", "a recipe has no table"),
        ({"recipe": {"policy": "hf"}}, "policy", "must be a table"),
        ({"recipe": "none.toml"}, "none.toml", "no such recipe"),
        ({"recipe": 3}, "recipe", "int is not a recipe"),
        ({"stages": ["alin"]}, "stages", "no stage 'alin'"),
    ],
)
def test_mistakes_in_a_run_are_raised_before_anything_starts(
    tables: Tables, tmp_path: Path, given: dict[str, Any], where: str, what: str
) -> None:
    with pytest.raises(InputError) as raised:
        alignkit.run(**{"recipe": tables, **given}, out=tmp_path / "out", progress=False)
    assert raised.value.where == where
    assert what in raised.value.what
    assert not (tmp_path / "out").exists()


def test_a_missing_option_is_asked_for_in_the_users_words() -> None:
    with pytest.raises(InputError) as raised:
        alignkit.run(optimizer="ppo", reward="function", progress=False)
    assert 'set options["reward.function"]=VALUE, or set it in the recipe' in str(raised.value)


def test_the_same_mistake_reads_the_same_on_the_command_line(
    tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--optimizer", "dpo", "-o", f"policy.model={tables['policy']['model']}", "--json"]
    for option, value in (("beto", "1"), ("beta", "-1"), ("n_epochs", "0.5")):
        assert cli.run([*words, "-o", f"optimizer.{option}={value}"]) == 2
        printed = json.loads(capsys.readouterr().err)["error"]
        with pytest.raises(InputError) as raised:
            alignkit.run(tables, options={f"optimizer.{option}": json.loads(value)}, progress=False)
        assert (raised.value.what, raised.value.fix) == (printed["what"], printed.get("fix", ""))


def test_the_default_folder_and_what_is_said(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(tomli_w.dumps(tables))
    assert alignkit.run("mine.toml", stages="preferences").path == Path("runs/mine")
    said = capsys.readouterr()
    assert "== preferences" in said.err
    assert said.out == ""
    assert alignkit.run(tables, stages="preferences", progress=False).path == Path("runs/run")
    assert capsys.readouterr() == ("", "")


def interrupting_letters(at: int) -> Callable[..., list[float]]:
    """The reward under the name that the recipe has it by; its call number `at` is interrupted."""
    plain, calls = letters, []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(len(completions))
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(prompts, completions)

    reward.__module__, reward.__qualname__ = plain.__module__, plain.__qualname__
    return reward


def test_an_interrupted_run_is_resumed_and_no_handler_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, before = online_tables(folder, "grpo"), [signal.getsignal(number) for number in SIGNALS]
    whole = alignkit.run(recipe, reward=letters, out=tmp_path / "whole", progress=False)
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(python_material, "letters", interrupting_letters(at=2))
        with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 2; .*resume=True"):
            alignkit.run(recipe, reward=python_material.letters, out=stopped, progress=False)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(InputError, match="this directory holds a run"):
        alignkit.run(recipe, reward=letters, out=stopped, progress=False)
    with pytest.raises(InputError, match="the recipe has changed"):
        alignkit.run(
            recipe, reward=letters, options={"optimizer.kl_coef": 0.5}, out=stopped, resume=True, progress=False
        )
    resumed = alignkit.run(recipe, reward=letters, out=stopped, resume=True, progress=False)
    assert weights(stopped / "policy") == weights(whole.path / "policy")
    assert [record["step"] for record in resumed.metrics] == [1, 2, 3]
    assert all(record["grad_norm"] > 0 for record in whole.metrics)
    assert untimed(resumed.summary) == untimed(whole.summary)


def test_a_run_in_another_thread(tables: Tables, dpo: Run, tmp_path: Path) -> None:
    done: list[Run] = []

    def work() -> None:
        options = {"optimizer.beta": 0.3, "run.metrics": []}
        done.append(alignkit.run(tables, options=options, out=tmp_path / "out", progress=False))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert weights(done[0].path / "policy") == weights(dpo.path / "policy")
