"""`alignkit.run`, `Run` and `alignkit.train` on a tiny Llama: the command line's results, its checks, nothing left."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.options import DPOOptions
from alignkit_grpo.grpo import GRPO
from alignkit_grpo.options import GRPOOptions
from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy
from alignkit_ppo.options import PPOOptions
from alignkit_ppo.ppo import PPO

import alignkit
from alignkit import Group, InputError, Interrupted, Prompt, RewardSource, Run, Sampling, cli
from alignkit.interfaces import Feed, ForeignTrainer
from alignkit.options import KLLimitOptions, TrainingOptions
from alignkit.outputs import TrainResult
from alignkit.records import read_groups, write_groups
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAIRS = [Group(Prompt(text=f"say {a}{b}"), (a * 3, b * 3), ranks=(0, 1)) for a in "abcd" for b in "xyz"]
PROMPTS = [group.prompt for group in PAIRS]
UNRANKED = Group(Prompt(text="a"), ("b", "c"))
TIED = Group(Prompt(text="a"), ("b", "c"), ranks=(0, 0))
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONLINE: dict[str, Any] = {"learning_rate": 1e-2, "iterations": 3, "batch_size": 4, "group_size": 2, "minibatch_size": 4}
DPO_OPTIONS: dict[str, Any] = {"learning_rate": 1e-2, "minibatch_size": 4, "beta": 0.3}

Tables = dict[str, dict[str, Any]]


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that differs from response to response, even of a model that says nothing sensible."""
    return [sum(ord(letter) % 13 for letter in text) / 50 for text in completions]


class Letters(RewardSource[Any]):
    """The same as a class."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [list(letters([], list(group.responses))) for group in groups]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and rankings."""
    made = tmp_path_factory.mktemp("api")
    write_tiny_llama(made / "model")
    write_groups(made / "pairs.jsonl", PAIRS)
    return made


@pytest.fixture(scope="module")
def tables(folder: Path) -> Tables:
    """A recipe on all prompts. Its `optimizer` is DPO."""
    return {
        "run": {"seed": 3, "holdout": 0.0, "device": "cpu"},
        "policy": {"model": str(folder / "model")},
        "preferences": {"path": str(folder / "pairs.jsonl")},
        "sampling": {"max_tokens": 6},
        "optimizer": {"plugin": "dpo", "learning_rate": 1e-2, "minibatch_size": 4, "for": {"ppo": {"n_epochs": 2}}},
        "eval": {"count": 2},
    }


@pytest.fixture(scope="module")
def dpo(folder: Path, tables: Tables) -> Run:
    """A finished run."""
    options = {"optimizer.beta": 0.3}
    return alignkit.run(tables, optimizer="dpo", options=options, out=folder / "dpo", progress=False)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def saved(policy: HFPolicy, folder: Path) -> bytes:
    policy.save(folder)
    return weights(folder)


def a_policy(folder: Path) -> HFPolicy:
    return HFPolicy(HFOptions(model=str(folder / "model")), alignkit.make_context(seed=3, device="cpu"))


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
        assert saved(opened.policy(), tmp_path / "again") == weights(dpo.path / "policy")  # type: ignore[arg-type]
    finally:
        kept.rename(folder / "pairs.jsonl")
    with pytest.raises(InputError, match="there is no run here"):
        Run.open(tmp_path)


def test_what_a_notebook_shows_is_escaped(tmp_path: Path, dpo: Run) -> None:
    assert repr(dpo) == f"Run({str(dpo.path)!r}: preferences, align, eval)"
    page = dpo._repr_html_()
    assert "<td>align</td>" in page
    assert "On 2 unseen prompts" in page
    assert len(page) < 4000
    odd = tmp_path / "<b>&"
    odd.mkdir()
    (odd / "run.json").write_text('{"stages": {}}')
    empty = Run.open(odd)
    assert repr(empty).endswith("<b>&': no stage has ended)")
    assert "&lt;b&gt;&amp;" in empty._repr_html_()
    assert "<b>" not in empty._repr_html_()
    assert (empty.metrics, empty.samples) == ([], [])
    with pytest.raises(InputError, match="no stage of this run has trained a policy"):
        empty.policy()


def test_stages_alone_a_trained_reward_and_the_policy_of_sft(folder: Path, tables: Tables, tmp_path: Path) -> None:
    demonstrations = [Group(group.prompt, group.responses[:1]) for group in PAIRS]
    write_groups(tmp_path / "demonstrations.jsonl", demonstrations)
    recipe = {name: tables[name] for name in ("run", "policy", "preferences")}
    recipe |= {"demonstrations": {"path": tmp_path / "demonstrations.jsonl"}, "reward": {"plugin": "model"}}
    out = tmp_path / "out"
    run = alignkit.run(recipe, stages="sft", out=out, progress=False)
    assert list(run.summary) == ["out", "sft"]
    assert saved(run.policy(), tmp_path / "again") == weights(out / "sft")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reward model is not trained yet"):
        run.reward()
    run = alignkit.run(recipe, stages=["preferences", "reward"], out=out, progress=False)
    assert list(run.summary) == ["out", "sft", "preferences", "reward"]
    assert "accuracy" in run.summary["reward"]
    by_hand = alignkit.build_component("reward", {"plugin": "model", "model": str(out / "reward")})
    assert Run.open(out).reward().score(PAIRS) == run.reward().score(PAIRS) == by_hand.score(PAIRS)
    with pytest.raises(InputError, match="the stage sft has been run here"):
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
    tables: Tables, tmp_path: Path, named: dict[str, str], options: dict[str, Any], expected: tuple[str, float, float]
) -> None:
    alignkit.run(tables, **named, options=options, stages="preferences", out=tmp_path, progress=False)  # type: ignore[arg-type]
    chosen = tomllib.loads((tmp_path / "recipe.toml").read_text())["optimizer"]
    assert (chosen["plugin"], chosen["learning_rate"], chosen["beta"]) == expected


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ({"options": {"optimizer.beto": 0.3}}, 'options["optimizer.beto"]', "no such option"),
        ({"options": {"optimizer.beta": -1}}, 'options["optimizer.beta"]', "must be more than 0, found -1"),
        ({"options": {"optimizer.beta": "[1]"}}, 'options["optimizer.beta"]', "must be a valid number"),
        ({"options": {"policy.model": "12"}}, 'options["policy.model"]', "'12' is neither a folder"),
        ({"options": {"beta": 1}}, 'options["beta"]', "'beta' names no option of a table"),
        ({"options": {"optimiser.beta": 1}}, 'options["optimiser.beta"]', "a recipe has no table 'optimiser'"),
        ({"options": ["optimizer.beta=1"]}, "options", "list is no mapping"),
        ({"optimizer": "nobody"}, 'optimizer="nobody"', "no optimizer plugin 'nobody'"),
        ({"optimizer": DPO}, "optimizer", "is neither the name of a plugin nor a function"),
        ({"reward": lambda prompts: []}, "reward", "a recipe can't name the function"),
        ({"recipe": {"optimizer": {"plugin": "dpo", "beta": -2}}}, "optimizer.beta", "must be more than 0, found -2"),
        ({"recipe": {"optimiser": {}}}, "optimiser", "a recipe has no table"),
        ({"recipe": {"policy": "hf"}}, "policy", "must be a table"),
        ({"recipe": "none.toml"}, "none.toml", "no such recipe"),
        ({"recipe": 3}, "recipe", "int is no recipe"),
        ({"stages": ["alin"]}, "stages", "there is no stage 'alin'"),
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
    assert 'options["reward.function"]=VALUE, or in the recipe' in str(raised.value)


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

    reward.__qualname__ = "letters"
    return reward


def online_tables(tables: Tables, plugin: str) -> Tables:
    recipe = {name: tables[name] for name in ("run", "policy", "sampling", "eval")}
    recipe["prompts"] = tables["preferences"]
    return recipe | {"optimizer": {"plugin": plugin, **ONLINE}}


def test_an_interrupted_run_is_resumed_and_no_handler_stays(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, before = online_tables(tables, "grpo"), [signal.getsignal(number) for number in SIGNALS]
    whole = alignkit.run(recipe, reward=letters, out=tmp_path / "whole", progress=False)
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "letters", interrupting_letters(at=2))
        with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 2; .*resume=True"):
            alignkit.run(recipe, reward=letters, out=stopped, progress=False)
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


def test_a_second_ctrl_c_is_that_of_python_and_not_the_end_of_the_process(folder: Path) -> None:
    class Twice(Letters):
        def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().score(groups)

    before = [signal.getsignal(number) for number in SIGNALS]
    grpo = GRPO(GRPOOptions(**ONLINE), policy=a_policy(folder), reward=Twice())
    with pytest.raises(KeyboardInterrupt):
        alignkit.train(grpo, PROMPTS, sampling=Sampling(max_tokens=6), progress=False)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_in_another_thread(tables: Tables, dpo: Run, tmp_path: Path) -> None:
    done: list[Run] = []

    def work() -> None:
        options = {"optimizer.beta": 0.3, "run.metrics": []}
        done.append(alignkit.run(tables, options=options, out=tmp_path / "out", progress=False))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert weights(done[0].path / "policy") == weights(dpo.path / "policy")


def test_an_offline_algorithm_by_hand_is_that_of_a_run(folder: Path, dpo: Run, tmp_path: Path) -> None:
    policy = a_policy(folder)
    result = alignkit.train(DPO(DPOOptions(**DPO_OPTIONS), policy=policy), PAIRS, seed=3, progress=False)
    assert result.steps == dpo.summary["align"]["steps"]
    assert saved(policy, tmp_path / "policy") == weights(dpo.path / "policy")


@pytest.mark.parametrize(("plugin", "made", "options"), [("grpo", GRPO, GRPOOptions), ("ppo", PPO, PPOOptions)])
def test_an_online_algorithm_by_hand_is_that_of_a_run(
    folder: Path, tables: Tables, tmp_path: Path, plugin: str, made: Any, options: Any
) -> None:
    run = alignkit.run(online_tables(tables, plugin), reward=letters, out=tmp_path / "run", progress=False)
    assert run.reward().score(PAIRS) == Letters().score(PAIRS)
    policy = a_policy(folder)
    algorithm = made(options(**ONLINE), policy=policy, reward=Letters())
    out = tmp_path / "by-hand"
    result = alignkit.train(algorithm, iter(PROMPTS), sampling=Sampling(max_tokens=6), out=out, seed=3, progress=False)
    assert weights(out) == weights(run.path / "policy") == saved(policy, tmp_path / "again")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, result.steps + 1))
    assert [line["loss"] for line in lines] == [record["loss"] for record in run.metrics]


def test_training_by_hand_is_resumed_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    sampling = Sampling(max_tokens=6)

    def algorithm(reward: RewardSource[Any], **options: Any) -> GRPO:
        return GRPO(GRPOOptions(**{**ONLINE, **options}), policy=a_policy(folder), reward=reward)

    class Gone(Letters):
        calls = 0

        def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
            self.calls += 1
            if self.calls == 2:
                raise ConnectionError("the judge is gone")
            return super().score(groups)

    whole, part = tmp_path / "whole", tmp_path / "part"
    alignkit.train(algorithm(Letters()), PROMPTS, sampling=sampling, out=whole, progress=False)
    with pytest.raises(ConnectionError):
        alignkit.train(algorithm(Gone()), PROMPTS, sampling=sampling, out=part, progress=False)
    with pytest.raises(InputError, match="this folder is not empty"):
        alignkit.train(algorithm(Letters()), PROMPTS, sampling=sampling, out=part, progress=False)
    for other in ({"kl_coef": 0.5}, {"learning_rate": 0.5}):
        with pytest.raises(alignkit.CheckpointError, match="another recipe or other data"):
            alignkit.train(
                algorithm(Letters(), **other), PROMPTS, sampling=sampling, out=part, resume=True, progress=False
            )
    more_often = algorithm(Letters(), save_every=1)
    alignkit.train(more_often, PROMPTS, sampling=sampling, out=part, resume=True, progress=False)
    assert weights(part) == weights(whole)


def test_without_out_nothing_stays_on_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    policy = a_policy(folder)
    start = torch.cat([p.detach().flatten() for p in policy.modules()["policy"].parameters()])
    seen: list[list[str]] = []

    class Looking(Letters):
        def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
            seen.append([path.name for path in tmp_path.iterdir()])
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().score(groups)

    grpo = GRPO(GRPOOptions(**ONLINE), policy=policy, reward=Looking())
    with pytest.raises(Interrupted, match="stopped by SIGINT; the weights stay as they are now") as stopped:
        alignkit.train(grpo, PROMPTS, sampling=Sampling(max_tokens=6), progress=False)
    assert stopped.value.exit_code == 130
    assert [len(names) for names in seen] == [1, 1]
    assert list(tmp_path.iterdir()) == []
    end = torch.cat([p.detach().flatten() for p in policy.modules()["policy"].parameters()])
    assert not torch.equal(start, end)


class Nudge(ForeignTrainer[TrainingOptions]):
    """A loop of its own, which adds to every weight."""

    consumes = Feed.RANKINGS

    def run(
        self,
        groups: Sequence[Group],
        *,
        sampling: Sampling,
        folder: Path,
        seed: int,
        on_step: Callable[[dict[str, float]], None],
    ) -> TrainResult:
        assert (list(groups), seed, folder.is_dir()) == (PAIRS, 7, True)
        for parameter in self.policy.modules()["policy"].parameters():
            parameter.data.add_(0.01)
        on_step({"step": 1, "loss": 0.5})
        return TrainResult(1, 0.5, 7, {"loss": 0.5})


def test_a_foreign_trainer_by_hand(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = alignkit.train(Nudge(policy=a_policy(folder)), PAIRS, seed=7, out=out, progress=False)
    assert (result.steps, result.metrics) == (1, {"loss": 0.5})
    assert weights(out) != weights(folder / "model")
    assert json.loads((out / "metrics.jsonl").read_text())["loss"] == 0.5


@dataclass(frozen=True, kw_only=True)
class LimitedOptions(DPOOptions, KLLimitOptions):
    """A limit that nobody reports to."""


class Limited(DPO):
    """DPO with a limit."""

    Config = LimitedOptions


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Any]:
    policy = a_policy(folder)
    return {
        "dpo": DPO(policy=policy),
        "grpo": GRPO(policy=policy, reward=Letters()),
        "bare": GRPO(policy=policy),
        "limited": Limited(LimitedOptions(max_kl=1.0), policy=policy),
        "nudge": Nudge(policy=policy),
    }


@pytest.mark.parametrize(
    ("algorithm", "data", "given", "where", "what"),
    [
        ("grpo", PAIRS, {}, "data", "number 0 is a Group, not a Prompt: GRPO learns from rollouts"),
        ("dpo", PROMPTS, {}, "data", "number 0 is a Prompt, not a Group: DPO learns from rankings"),
        ("dpo", [*PAIRS, {"prompt": "a"}], {}, "data", "number 12 is a dict, not a Group"),
        ("nudge", PROMPTS, {}, "data", "number 0 is a Prompt, not a Group: Nudge learns from rankings"),
        ("grpo", "prompts.jsonl", {}, "data", "str is no list of Prompts"),
        ("grpo", ["say a"], {}, "data", "number 0 is a str, not a Prompt"),
        ("grpo", [], {}, "data", "there are no prompts"),
        ("dpo", [], {}, "data", "there are no groups"),
        ("dpo", None, {}, "data", "NoneType is no list of Groups"),
        ("dpo", PAIRS, {"texts": PROMPTS}, "texts", "number 0 is a Prompt, not a Group"),
        ("dpo", PAIRS, {"texts": PAIRS}, "texts", "the texts would not be used"),
        ("dpo", PAIRS, {"sampling": Sampling()}, "sampling", "DPO samples nothing"),
        ("limited", PAIRS, {}, "optimizer.max_kl", "Limited reports no KL to limit"),
        ("dpo", PAIRS, {"resume": True}, "resume", "nothing to resume from"),
        ("grpo", PROMPTS, {"sampling": Sampling(top_k=3)}, "sampling", "whole distribution"),
        ("bare", PROMPTS, {}, "reward", "GRPO learns from scored rollouts"),
        (DPO, PAIRS, {}, "optimizer", "DPO is no algorithm that holds a policy"),
        ("'dpo'", PAIRS, {}, "optimizer", "\"'dpo'\" is no algorithm"),
        ("dpo", [*PAIRS, UNRANKED], {}, "the training data", "1 of the 13 records have no ranks"),
        ("dpo", [TIED], {}, "the training data", "none of the 1 records can be learned from"),
    ],
)
def test_mistakes_in_training_by_hand(
    made: dict[str, Any], algorithm: Any, data: Any, given: dict[str, Any], where: str, what: str
) -> None:
    chosen = made.get(algorithm, algorithm) if isinstance(algorithm, str) else algorithm
    with pytest.raises(InputError) as raised:
        alignkit.train(chosen, data, progress=False, **given)
    assert raised.value.where == where
    assert what in raised.value.what
    assert raised.value.fix
