"""Rounds of sampling, ranking and optimising on tiny parts: their files and references, and going on after a kill."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.ipo import IPO
from alignkit_dpo.kto import KTO
from alignkit_dpo.reference_free import SimPO
from alignkit_reward.labeller import RewardLabeller
from pipeline_parts import Recorder, tiny_registry

from alignkit.errors import InputError, PluginError, StoppedByCheck
from alignkit.interfaces import ForeignTrainer
from alignkit.plugins import Registration
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe
from alignkit.recipe.tables import EvalOptions
from alignkit.records import Group, read_groups
from alignkit.runs.history import split_by_prompt
from alignkit.runs.plan import plan
from alignkit.runs.reporting import Reporter
from alignkit.runs.rounds import round_seed
from alignkit.runs.run import run_recipe
from alignkit.testing import TinyOptions, TinyPolicy, TinyReward, assert_near, terms_of_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics
    from alignkit.recipe.resolved import Resolved

HOLDOUT = 0.2
SEEN: list[tuple[tuple[Group, ...], torch.Tensor]] = []


class Watched(DPO):
    """Keeps what its reference says of every step."""

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        assert batch.ref_logprobs is not None
        SEEN.append((batch.groups, batch.ref_logprobs))
        return super().loss(batch)


class Foreign(ForeignTrainer[Any]):
    """Brings a loop of its own."""

    Config = DPO.Config
    consumes = DPO.consumes

    def run(self, groups: Sequence[Group], **_: Any) -> Any:
        raise NotImplementedError


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def resolved(tmp_path: Path, algorithm: type[Any] | str = DPO, *, without: str = "", **run: Any) -> Resolved:
    tables = {
        "policy": "[policy]",
        "demonstrations": '[demonstrations]\nplugin = "letters"\n[sft]\nlearning_rate = 0.01\nn_epochs = 2',
        "prompts": '[prompts]\nplugin = "letters"',
        "preferences": '[preferences]\nplugin = "letters"\nk = 3',
        "reward": '[reward]\nplugin = "tiny"',
        "optimizer": f'[optimizer]\nplugin = "{algorithm if isinstance(algorithm, str) else "chosen"}"',
        "sampling": "[sampling]\nmax_tokens = 6",
        "run": f"[run]\nholdout = {HOLDOUT}\nround_samples = 3\ncache = ''",
    }
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join(text for name, text in tables.items() if name not in without.split()))
    registry = tiny_registry()
    registry.registrations.append(
        Registration("preferences", "reward", RewardLabeller, RewardLabeller.Config, "tests"),
    )
    if not isinstance(algorithm, str):
        registry.registrations.append(Registration("optimizer", "chosen", algorithm, algorithm.Config, "tests"))
    plain = isinstance(algorithm, str) or "optimizer" in without
    options = {} if plain else {"learning_rate": 0.02, "minibatch_size": 4, "save_every": 1}
    given = {f"optimizer.{key}": value for key, value in options.items()} | {f"run.{k}": v for k, v in run.items()}
    overrides = [f"{key}={value}" for key, value in given.items()]
    return resolve(load_recipe(path, flags={}, overrides=overrides), registry)


def ranked_samples(policy: TinyPolicy, number: int, recipe: Resolved) -> list[Group]:
    """What the policy says to the prompts that are trained on, ranked by the share of the letter a."""
    prompts = {group.prompt.key: group.prompt for group in recipe.build("prompts").preferences(None)}
    asked = split_by_prompt(list(prompts.values()), HOLDOUT)[0]
    sampled = policy.generate(asked, n=3, sampling=recipe.sampling, seed=round_seed(0, number)).groups
    expected = []
    for group in sampled:
        texts = dict.fromkeys(group.responses)
        scores = [text.count("a") / max(len(text), 1) for text in texts]
        if len(set(scores)) > 1:
            ranks = tuple(sorted(set(scores), reverse=True).index(score) for score in scores)
            expected.append(replace(group, responses=tuple(texts), ranks=ranks, finished=None))
    return expected


def stored(folder: Path) -> TinyPolicy:
    return TinyPolicy(TinyOptions(model=str(folder)))


def files(out: Path) -> dict[str, bytes]:
    """What every stage has left."""
    names = ("preferences.jsonl", "rounds/1/policy", "rounds/2/preferences.jsonl", "rounds/2/policy", "policy")
    paths = [out / name if name.endswith("jsonl") else out / name / "model.safetensors" for name in names]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def test_the_plan_shows_the_rounds(tmp_path: Path) -> None:
    stages = plan(resolved(tmp_path, rounds=3, round_reference="moved"))
    assert [stage.key for stage in stages] == [
        "sft", "preferences", "rounds/1/align", "rounds/2/preferences", "rounds/2/align", "rounds/3/preferences",
        "rounds/3/align", "eval",
    ]  # fmt: skip
    assert stages[3].text == "3 responses per prompt, ranked by the reward tiny"
    assert stages[4].text == "chosen on them, reference: the start of the round"
    kept = plan(resolved(tmp_path, rounds=2))
    assert kept[4].text == "chosen on them, reference: the policy before the first round"


@pytest.mark.parametrize("algorithm", [DPO, slow(KTO), slow(SimPO)])
def test_a_round_ranks_what_the_policy_of_the_round_before_says(tmp_path: Path, algorithm: type[Any]) -> None:
    recipe, out, recorder = resolved(tmp_path, algorithm, rounds=2), tmp_path / "out", Recorder()
    summary = run_recipe(recipe, out, reporter=recorder)
    assert recorder.stages == ["sft", "preferences", "rounds/1/align", "rounds/2/preferences", "rounds/2/align", "eval"]
    found = [(g.prompt, g.responses, g.ranks) for g in read_groups(out / "rounds/2/preferences.jsonl")]
    expected = ranked_samples(stored(out / "rounds/1/policy"), 2, recipe)
    assert found == [(g.prompt, g.responses, g.ranks) for g in expected]
    assert summary["rounds/2/preferences"]["groups"] == len(expected) > 0
    weights = files(out)
    assert weights["policy/model.safetensors"] == weights["rounds/2/policy/model.safetensors"]
    assert weights["policy/model.safetensors"] != weights["rounds/1/policy/model.safetensors"]
    held = {group.prompt.key for group in read_groups(out / "samples.jsonl")}
    assert not held & {prompt.key for prompt, _, _ in found}


def assert_said_by(policy: TinyPolicy, seen: Sequence[tuple[tuple[Group, ...], torch.Tensor]]) -> None:
    for groups, logprobs in seen:
        plain = [replace(group, scores=None) for group in groups]
        with torch.no_grad():
            found = policy.forward(policy.encode(plain)).logprobs
        assert_near(found, logprobs, terms=terms_of_network(policy.modules(), tokens=len(logprobs)))


@pytest.mark.parametrize("reference", ["kept", "moved"])
def test_the_reference_of_a_round(tmp_path: Path, reference: str) -> None:
    out = tmp_path / "out"
    SEEN.clear()
    recipe = resolved(tmp_path, Watched, rounds=2, round_reference=reference)
    summary = run_recipe(recipe, out, reporter=Reporter())
    first = summary["rounds/1/align"]["steps"]
    assert first > 0
    assert len(SEEN) == first + summary["rounds/2/align"]["steps"]
    assert_said_by(stored(out / "sft"), SEEN[:first])
    before, after = stored(out / "sft"), stored(out / "rounds/1/policy")
    right, wrong = (before, after) if reference == "kept" else (after, before)
    assert_said_by(right, SEEN[first:])
    with pytest.raises(AssertionError):
        assert_said_by(wrong, SEEN[first:])


@pytest.mark.parametrize("where", [slow("ranking"), "training"])
def test_a_run_cut_off_in_its_second_round_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    options = {"rounds": 2, "round_reference": "kept"}
    summary = run_recipe(resolved(tmp_path, **options), tmp_path / "whole", reporter=Reporter())
    calls, last = 0, 1 if where == "ranking" else summary["rounds/1/align"]["steps"] + 2
    patched, name = (TinyReward, "score") if where == "ranking" else (DPO, "loss")
    original = getattr(patched, name)

    def cut_off(self: Any, given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            raise PluginError("the light went out")
        return original(self, given)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(patched, name, cut_off)
        with pytest.raises(PluginError):
            run_recipe(resolved(tmp_path, **options), out, reporter=Reporter())
    assert (out / "rounds/2/preferences.jsonl").exists() == (where == "training")
    assert not (out / "policy").exists()
    recorder = Recorder()
    run_recipe(resolved(tmp_path, **options), out, resume=True, reporter=recorder)
    ranking = ["rounds/2/preferences"] if where == "ranking" else []
    assert recorder.stages == [*ranking, "rounds/2/align", "eval"]
    assert any("resumed after step 1" in note for note in recorder.notes) == (where == "training")
    assert files(out) == files(tmp_path / "whole")


def test_without_preferences_the_first_round_samples_too(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, IPO, without="preferences", rounds=2)
    out = tmp_path / "out"
    run_recipe(recipe, out, reporter=Reporter())
    found = [(g.prompt, g.responses, g.ranks) for g in read_groups(out / "preferences.jsonl")]
    assert found == [(g.prompt, g.responses, g.ranks) for g in ranked_samples(stored(out / "sft"), 1, recipe)]
    assert stored(out / "policy")


@pytest.mark.slow
def test_align_alone_runs_all_rounds(tmp_path: Path) -> None:
    out, options = tmp_path / "out", {"rounds": 2}
    for stage in ("sft", "preferences"):
        run_recipe(resolved(tmp_path, **options), out, stages=[stage], reporter=Reporter())
    recorder = Recorder()
    run_recipe(resolved(tmp_path, **options), out, stages=["align"], reporter=recorder)
    assert recorder.stages == ["rounds/1/align", "rounds/2/preferences", "rounds/2/align"]
    with pytest.raises(InputError, match="rounds/1/align has already run here"):
        run_recipe(resolved(tmp_path, **options), out, stages=["align"], reporter=Reporter())
    run_recipe(resolved(tmp_path, **options), tmp_path / "whole", reporter=Reporter())
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
def test_overwriting_leaves_nothing_of_the_rounds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_recipe(resolved(tmp_path, rounds=2), out, reporter=Reporter())
    summary = run_recipe(resolved(tmp_path), out, overwrite=True, reporter=Reporter())
    assert list(summary) == ["sft", "preferences", "align", "eval"]
    assert not (out / "rounds").exists()


@pytest.mark.parametrize(
    ("algorithm", "without", "where", "message"),
    [
        ("reinforce", "", "run.rounds", "reinforce samples in each of its own iterations"),
        (DPO, "reward", "run.rounds", "later rounds need something to rank"),
        (DPO, "optimizer", "run.rounds", "rounds need an algorithm"),
        (Foreign, "", "run.round_reference", "makes its own reference"),
    ],
)
@pytest.mark.parametrize("stages", [None, ["align"]])
def test_rounds_that_make_no_sense_are_refused_before_anything_starts(
    tmp_path: Path, algorithm: type[Any] | str, without: str, where: str, message: str, stages: list[str] | None
) -> None:
    recipe = resolved(tmp_path, algorithm, without=without, rounds=2)
    with pytest.raises(InputError, match=message) as raised:
        run_recipe(recipe, tmp_path / "out", stages=stages, reporter=Reporter())
    assert raised.value.where == where
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_preferences_that_sample_rank_later_rounds_too(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, without="reward preferences", rounds=2)
    registry = recipe.registry
    config = RewardLabeller.Config(source={"plugin": "tiny"}, k=4)
    part = replace(recipe.parts["prompts"], registration=registry.get("preferences", "reward"), config=config)
    recipe = replace(recipe, parts={**recipe.parts, "preferences": part})
    out = tmp_path / "out"
    run_recipe(recipe, out, reporter=Reporter())
    rounds = [list(read_groups(out / name)) for name in ("preferences.jsonl", "rounds/2/preferences.jsonl")]
    assert [len(groups) > 0 for groups in rounds] == [True, True]
    assert max(len(group.responses) for group in rounds[1]) == 4


def test_a_round_in_which_no_one_wins_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyReward, "score", lambda _self, groups: [[1.0] * len(g.responses) for g in groups])
    with pytest.raises(StoppedByCheck, match="round 2: all responses to each of 14 prompts tie"):
        run_recipe(resolved(tmp_path, rounds=2), tmp_path / "out", reporter=Reporter())


def test_every_round_samples_with_a_seed_of_its_own() -> None:
    seeds = [round_seed(seed, number) for seed in range(3) for number in range(1, 20)]
    assert len(set(seeds)) == len(seeds)


def test_best_of_n_is_measured_beside_both_policies(tmp_path: Path) -> None:
    recipe = resolved(tmp_path)
    recipe = replace(recipe, eval=EvalOptions(samples=3, best_of=4))
    out = tmp_path / "out"
    report = run_recipe(recipe, out, reporter=Reporter())["eval"]
    names = ["start, best of 4", "policy, best of 4"]
    for plain, name in zip(("start", "policy"), names, strict=True):
        assert report[name]["reward"]["value"] > report[plain]["reward"]["value"]
        assert report[name]["reward"]["n"] == report[plain]["reward"]["n"] == 18
        assert "kl" not in report[name]
    assert report["start, best of 4"]["kl_bound"]["value"] == pytest.approx(math.log(4) - 3 / 4, abs=1e-4)
    for name in names:
        assert report[f"win_rate/reward/{name}"]["value"] > 0.5
    policy = stored(out / "sft")
    prompts = [group.prompt for group in read_groups(out / "samples.jsonl") if group.source == "start"]
    many = policy.generate(prompts, n=12, sampling=recipe.sampling, seed=1)
    rows = TinyReward().score(many.groups)
    best = [max(row[k : k + 4]) for row in rows for k in (0, 4, 8)]  # type: ignore[type-var]
    assert report["start, best of 4"]["reward"]["value"] == pytest.approx(sum(best) / len(best), abs=1e-4)  # type: ignore[arg-type]
    assert ", best of 4" in (out / "report.html").read_text()


@pytest.mark.parametrize("stages", [None, ["eval"]])
def test_best_of_n_needs_a_reward(tmp_path: Path, stages: list[str] | None) -> None:
    recipe = resolved(tmp_path, without="reward")
    recipe = replace(recipe, eval=EvalOptions(best_of=2))
    with pytest.raises(InputError, match="needs a reward to choose the best"):
        run_recipe(recipe, tmp_path / "out", stages=stages, reporter=Reporter())
