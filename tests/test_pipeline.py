"""The plan of a recipe, its stages from end to end on tiny parts, and going on where a run was cut off."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from pipeline_parts import PROMPTS, Letters, LettersOptions, Margin, Recorder, Reinforce, tiny_registry

from alignkit.errors import InputError, Interrupted, PluginError
from alignkit.plugins import Registration
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe
from alignkit.records import Group, read_groups
from alignkit.runs import single
from alignkit.runs.plan import plan
from alignkit.runs.reporting import Reporter
from alignkit.runs.run import run_recipe
from alignkit.testing import TinyOptions, TinyPolicy, TinyReward
from alignkit.training.ptx import PtxText

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics
    from alignkit.recipe.resolved import Resolved


def resolved(
    tmp_path: Path,
    optimizer: str = "reinforce",
    *,
    without: Sequence[str] = (),
    more: str = "",
    options: str = "",
    flags: dict[str, str] | None = None,
) -> Resolved:
    tables = {
        "run": "[run]\nholdout = 0.2",
        "policy": "[policy]",
        "demonstrations": '[demonstrations]\nplugin = "letters"\n[sft]\nlearning_rate = 0.01\nn_epochs = 3',
        "prompts": '[prompts]\nplugin = "letters"',
        "preferences": '[preferences]\nplugin = "letters"\nk = 3',
        "reward": '[reward]\nplugin = "tiny"',
        "optimizer": f'[optimizer]\nplugin = "{optimizer}"\nlearning_rate = 0.01\n'
        f"for.reinforce = {{iterations = 3, batch_size = 4, group_size = 2}}{options}",
        "sampling": "[sampling]\nmax_tokens = 6",
        "eval": "[eval]\nsamples = 2",
    }
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join(text for name, text in tables.items() if name not in without) + "\n" + more)
    return resolve(load_recipe(path, flags=flags or {}, overrides=[]), tiny_registry())


@pytest.mark.parametrize(
    ("optimizer", "without", "stages"),
    [
        ("reinforce", [], ["sft", "align", "eval"]),
        ("reinforce", ["prompts"], ["sft", "preferences", "align", "eval"]),
        ("margin", [], ["sft", "preferences", "align", "eval"]),
        ("margin", ["demonstrations"], ["preferences", "align", "eval"]),
        ("margin", ["optimizer"], ["sft", "preferences"]),
        ("margin", ["optimizer", "preferences"], ["sft"]),
    ],
)
def test_the_plan_follows_from_what_the_algorithm_consumes(
    tmp_path: Path, optimizer: str, without: list[str], stages: list[str]
) -> None:
    assert [stage.name for stage in plan(resolved(tmp_path, optimizer, without=without))] == stages


@pytest.mark.parametrize(
    ("optimizer", "without", "message"),
    [
        ("reinforce", ["reward"], r"no table \[reward\].*reinforce"),
        ("reinforce", ["prompts", "preferences"], r"no table \[prompts\]"),
        ("margin", ["preferences"], r"no table \[preferences\]"),
        ("sft", [], "learns from demonstrations"),
        ("margin", ["optimizer", "preferences", "demonstrations"], "nothing to do"),
    ],
)
def test_a_missing_part_is_said_before_anything_starts(
    tmp_path: Path, optimizer: str, without: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_recipe(resolved(tmp_path, optimizer, without=without), tmp_path / "out", reporter=Reporter())
    assert not (tmp_path / "out").exists()


def test_preferences_that_are_asked_for_are_not_left_unread(tmp_path: Path) -> None:
    asked = {"preferences": "letters"}
    with pytest.raises(InputError, match="reinforce does not use them") as error:
        plan(resolved(tmp_path, "reinforce", flags=asked))
    assert error.value.where == "--preferences letters"
    assert "reward.model=" in error.value.fix
    for optimizer, without in (("margin", []), ("reinforce", ["prompts"])):
        assert plan(resolved(tmp_path, optimizer, without=without, flags=asked))


@pytest.mark.parametrize("table", ["demonstrations", "ptx"])
def test_texts_of_ptx_are_learned_from_but_not_those_that_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    given: list[Group] = []

    class Texts(PtxText):
        def __init__(self, groups: Sequence[Group], policy: Any, **named: Any) -> None:
            given.extend(groups)
            super().__init__(groups, policy, **named)

    monkeypatch.setattr("alignkit.algorithms.online.PtxText", Texts)
    own = table == "ptx"
    recipe = resolved(
        tmp_path,
        without=["demonstrations"] if own else [],
        more='[ptx]\nplugin = "letters"' if own else "",
        options="\nptx_coef = 0.5",
    )
    summary = run_recipe(recipe, tmp_path / "out", reporter=Recorder())
    held_out = {group.prompt.key for group in read_groups(tmp_path / "out" / "samples.jsonl")}
    assert len(given) == 14
    assert held_out and not held_out & {group.prompt.key for group in given}
    assert summary["align"]["metrics"]["ptx_loss"] > 0


def test_texts_that_are_not_used_are_told(tmp_path: Path) -> None:
    table = '[ptx]\nplugin = "letters"'
    (notice,) = resolved(tmp_path, more=table).notices
    assert notice.startswith("[ptx] is ignored: optimizer.ptx_coef is 0")
    assert resolved(tmp_path, more=table, options="\nptx_coef = 0.5").notices == ()
    assert resolved(tmp_path, "margin", more=table).notices[-1] == notice


def test_ptx_without_texts_is_said_before_anything_starts(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, without=["demonstrations"], options="\nptx_coef = 0.5")
    with pytest.raises(InputError, match=r"no table \[ptx\], needed by optimizer\.ptx_coef"):
        run_recipe(recipe, tmp_path / "out", reporter=Reporter())
    assert not (tmp_path / "out").exists()


def test_a_run_that_ends_early_says_why_and_is_done(tmp_path: Path) -> None:
    recorder = Recorder()
    recipe = resolved(tmp_path, options="\nstop = {plateau = 1, plateau_delta = 9.0}")
    summary = run_recipe(recipe, tmp_path / "out", reporter=recorder)
    assert summary["align"]["steps"] == 1
    assert summary["align"]["stopped"].startswith("the reward has reached a plateau")
    said = json.loads((tmp_path / "out" / "run.json").read_text())["stages"]["align"]
    assert said["stopped"] == summary["align"]["stopped"]
    assert any(note.startswith("stopped after step 1: the reward has") for note in recorder.notes)
    assert "stopped" not in summary["sft"]
    assert summary["eval"]["prompts"] == 6


def test_the_gold_reward_is_a_component_of_the_recipe(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, options='\nstop = {gold = {plugin = "tiny", letter = "b"}}')
    run_recipe(recipe, tmp_path / "out", reporter=Recorder())
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    golds = [record["gold_reward"] for record in records if record["stage"] == "policy" and "loss" in record]
    assert len(golds) == 3
    assert all(0 <= gold <= 1 for gold in golds)
    with pytest.raises(InputError, match=r"stop\.gold\.letters: no such option"):
        resolved(tmp_path, options='\nstop = {gold = {plugin = "tiny", letters = "b"}}')


@pytest.mark.parametrize("optimizer", ["reinforce", "margin"])
def test_a_run_leaves_its_files_and_holds_out_the_evaluation_prompts(tmp_path: Path, optimizer: str) -> None:
    trained_on: set[str] = set()

    class Watching(Margin if optimizer == "margin" else Reinforce):  # type: ignore[misc]
        def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
            trained_on.update(group.prompt.key for group in batch.groups)
            loss, metrics = super().loss(batch)
            return loss, metrics

    recipe = resolved(tmp_path, optimizer)
    part = recipe.parts["optimizer"]
    watched = replace(part, registration=replace(part.registration, target=Watching))
    recipe = replace(recipe, parts={**recipe.parts, "optimizer": watched})
    out = tmp_path / "out"
    summary = run_recipe(recipe, out, reporter=Recorder())
    assert summary["eval"]["prompts"] == 6
    assert summary["eval"]["start"]["kl"]["value"] == 0.0
    samples = list(read_groups(out / "samples.jsonl"))
    assert [group.source for group in samples[:2]] == ["start", "policy"]
    assert trained_on
    assert not trained_on & {group.prompt.key for group in samples}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} == {"sft", "policy"}
    assert TinyPolicy(TinyOptions(model=str(out / "policy")))
    page = (out / "report.html").read_text()
    assert "wins over the start by reward" in page
    assert "polyline" in page
    assert (out / "preferences.jsonl").exists() == (optimizer == "margin")


def test_ctrl_c_outside_of_training_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: TinyPolicy, *_: Any, **__: Any) -> GroupBatch:
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyPolicy, "generate", interrupted)
    with pytest.raises(Interrupted) as stopped:
        run_recipe(resolved(tmp_path), tmp_path / "out", reporter=Recorder())
    kept = f"stopped by SIGINT in align; what {tmp_path / 'out'} holds is kept: continue with --resume"
    assert (str(stopped.value), stopped.value.exit_code) == (kept, 130)
    assert (tmp_path / "out" / "sft").is_dir()


def test_a_resumed_run_skips_what_is_done_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_recipe(resolved(tmp_path), tmp_path / "whole", reporter=Reporter())

    calls = 0
    score = TinyReward.score

    def fail_third(self: TinyReward, groups: Any) -> list[list[float | None]]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise PluginError("the judge is gone")
        return score(self, groups)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(TinyReward, "score", fail_third)
        with pytest.raises(PluginError, match="judge is gone"):
            run_recipe(resolved(tmp_path), out, reporter=Reporter())
    recorder = Recorder()
    resumed = run_recipe(resolved(tmp_path), out, resume=True, reporter=recorder)
    assert recorder.stages == ["align", "eval"]
    assert any("resumed after step" in note for note in recorder.notes)
    weights = [(path / "policy" / "model.safetensors").read_bytes() for path in (tmp_path / "whole", out)]
    assert weights[0] == weights[1]
    assert resumed["eval"]["policy"] == whole["eval"]["policy"]


def test_stages_given_alone_pass_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = resolved(tmp_path, "margin")
    for stage in ("sft", "preferences", "align", "eval", "eval"):
        recorder = Recorder()
        run_recipe(recipe, out, stages=[stage], reporter=recorder)
        assert recorder.stages == [stage]
    with pytest.raises(InputError, match="stage align has already run here"):
        run_recipe(recipe, out, stages=["align"], reporter=Reporter())
    run_recipe(recipe, out, stages=["align"], overwrite=True, reporter=Reporter())
    whole = tmp_path / "whole"
    run_recipe(recipe, whole, reporter=Reporter())
    names = ("preferences.jsonl", "policy/model.safetensors")
    assert [(out / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]


def test_a_run_says_what_to_install_for_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.runs.results.entry_points", lambda group: [])
    recorder = Recorder()
    run_recipe(resolved(tmp_path, "margin"), tmp_path / "out", stages=["preferences"], reporter=recorder)
    assert recorder.notes[-1] == "no report.html: pip install alignkit-report"
    assert not (tmp_path / "out" / "report.html").exists()


def test_sample_and_score_need_only_files(tmp_path: Path) -> None:
    registry = tiny_registry()
    registry.registrations.append(Registration("preferences", "dataset", Letters, PathOptions, "tests"))
    recipe = replace(resolved(tmp_path), registry=registry)
    out, scored = tmp_path / "samples.jsonl", tmp_path / "scored.jsonl"
    said = single.sample(recipe, tmp_path / "prompts.jsonl", 2, out, Reporter())
    assert (said["groups"], said["responses"]) == (len(PROMPTS), 2 * len(PROMPTS))
    said = single.score(recipe, out, scored, Reporter())
    assert said["scores"] == 2 * len(PROMPTS)
    groups = list(read_groups(scored))
    assert [group.responses for group in groups] == [group.responses for group in read_groups(out)]
    expected = TinyReward().score(groups)
    assert [list(group.scores or ()) for group in groups] == expected
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="empty"):
        single.score(recipe, tmp_path / "empty.jsonl", scored, Reporter())


@dataclass(frozen=True, kw_only=True)
class PathOptions(LettersOptions):
    """Options of a source on file."""

    path: str = ""
    """The file."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other names of columns."""


def test_an_evaluation_replaces_the_earlier_one_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, recipe = tmp_path / "out", resolved(tmp_path)
    run_recipe(recipe, out, reporter=Reporter())
    (out / "texts.jsonl").touch()  # as of an evaluation with texts
    before = [(out / name).read_bytes() for name in ("samples.jsonl", "run.json", "report.html")]
    changed = replace(recipe, eval=replace(recipe.eval, samples=1))

    def fails(*_: object) -> None:
        raise ZeroDivisionError("no measures")

    with monkeypatch.context() as patch:
        patch.setattr("alignkit.runs.stages.from_reports", fails)
        with pytest.raises(ZeroDivisionError):
            run_recipe(changed, out, stages=["eval"], reporter=Reporter())
    after = [(out / name).read_bytes() for name in ("samples.jsonl", "report.html")]
    assert [after[0], after[1]] == [before[0], before[2]]
    assert json.loads((out / "run.json").read_text())["stages"] == json.loads(before[1])["stages"]
    assert (out / "texts.jsonl").exists()
    run_recipe(changed, out, stages=["eval"], reporter=Reporter())
    assert {len(group.responses) for group in read_groups(out / "samples.jsonl")} == {1}
    assert not (out / "texts.jsonl").exists()
