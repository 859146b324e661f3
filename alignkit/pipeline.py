"""Which stages a recipe needs, in which order, and what passes between them: files, so that each restarts alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError
from alignkit.interfaces import Feed
from alignkit.rounds import check_rounds, ranker_text, round_folder, samples_at_the_start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.interfaces import Optimizer, Policy, PreferenceSource, RewardSource
    from alignkit.records import Group, Prompt
    from alignkit.reporting import Reporter
    from alignkit.resolved import Resolved
    from alignkit.rundir import RunDir

REWARD_TRAINING = "reward.train"
"""The part of a recipe that names the Optimizer by which its reward is trained."""

ORDER = ("sft", "preferences", "reward", "align", "eval")


@dataclass(frozen=True)
class Stage:
    """A stage of the plan and what it does, for people.

    Attributes:
        round: the round that it belongs to, from 1; 0 outside of rounds.
    """

    name: str
    text: str = ""
    round: int = 0

    @property
    def key(self) -> str:
        """Under which it is kept: its name, in its round's folder."""
        return f"{round_folder(self.round)}/{self.name}" if self.round else self.name


def plan(resolved: Resolved) -> list[Stage]:
    """The stages that the recipe's tables and its algorithm's `consumes` call for.

    Raises:
        InputError: a table that the algorithm needs is missing.
    """
    names = resolved.names
    check_rounds(resolved)
    stages: list[Stage] = []
    if "demonstrations" in names:
        stages.append(Stage("sft", f"{names['sft']} on the demonstrations of {names['demonstrations']}"))
    trained = REWARD_TRAINING in resolved
    consumes = consumed_by(resolved) if "optimizer" in names else None
    if trained or consumes in (Feed.RANKINGS, Feed.LABELS) or ("preferences" in names and consumes is None):
        if samples_at_the_start(resolved) and not trained:
            stages.append(Stage("preferences", ranker_text(resolved)))
        else:
            _need(resolved, "preferences", "an algorithm or reward model that learns from preferences")
            stages.append(Stage("preferences", f"from {names['preferences']}"))
    if trained:
        stages.append(Stage("reward", f"reward model by {resolved.part(REWARD_TRAINING).registration.name}"))
    if consumes is Feed.ROLLOUTS:
        _need(resolved, "reward", f"{names['optimizer']}, which learns from scored rollouts")
        if "prompts" not in names and "preferences" not in names:
            _need(resolved, "prompts", f"{names['optimizer']}, which samples responses to prompts")
        if getattr(resolved.config("optimizer"), "ptx_coef", 0) and "demonstrations" not in names:
            _need(resolved, "ptx", "optimizer.ptx_coef, for texts to be kept likely (or [demonstrations])")
    if consumes is Feed.DEMONSTRATIONS:
        raise InputError(
            f"{names['optimizer']} learns from demonstrations",
            where="optimizer.plugin",
            fix="use it in the [sft] table, with a [demonstrations] table",
        )
    if consumes is not None:
        stages += _alignment(resolved, consumes)
        stages.append(Stage("eval", "the policy against the one it started from"))
        _check_best_of(resolved)
    if not stages:
        raise InputError(
            "nothing to do: the recipe has no [demonstrations], [preferences] or [optimizer] table",
            fix="add one, or use --optimizer and --preferences",
        )
    _check_preferences_are_read(resolved, stages)
    return stages


def _check_preferences_are_read(resolved: Resolved, stages: Sequence[Stage]) -> None:
    """Preferences that a recipe holds may lie idle; those that somebody asked for just now may not."""
    if not {"preferences", "prompts"} <= resolved.names.keys() or "preferences" not in resolved.by_flag:
        return
    if all(stage.name != "preferences" for stage in stages):
        raise InputError(
            f"{resolved.names['optimizer']} would never see them: it learns from a reward that is there already",
            where=f"--preferences {resolved.names['preferences']}",
            fix="train a reward model from them (--reward model -o reward.model=), or take an algorithm that learns"
            " from preferences (--optimizer dpo)",
        )


def _alignment(resolved: Resolved, consumes: Feed) -> list[Stage]:
    """The one stage that aligns, or those of all rounds."""
    name, rounds = resolved.names["optimizer"], resolved.run.rounds
    if rounds == 1:
        return [Stage("align", f"{name} on {consumes.value}")]
    moved = resolved.run.round_reference == "moved"
    reference = "the policy that the round starts from" if moved else "the policy before the first round"
    stages = [Stage("align", f"{name} on {consumes.value}", 1)]
    for number in range(2, rounds + 1):
        stages.append(Stage("preferences", ranker_text(resolved), number))
        stages.append(Stage("align", f"{name} on them, held to {reference}", number))
    return stages


def _check_best_of(resolved: Resolved) -> None:
    if resolved.eval.best_of > 1 and "reward" not in resolved.names:
        raise InputError(
            "there is no reward to choose the best by", where="eval.best_of", fix="add [reward], or leave it out"
        )


def _alone(resolved: Resolved, names: Sequence[str]) -> list[Stage]:
    """The stages of these names; `align` is that of all rounds, with the preferences between them."""
    if "eval" in names:
        _check_best_of(resolved)
    if "align" not in names or resolved.run.rounds == 1:
        return [Stage(name) for name in ORDER if name in names]
    check_rounds(resolved)
    rounds = _alignment(resolved, consumed_by(resolved))
    return [stage for name in ORDER if name in names for stage in (rounds if name == "align" else [Stage(name)])]


def consumed_by(resolved: Resolved) -> Feed:
    """What the recipe's alignment algorithm learns from."""
    algorithm: type[Optimizer[Any]] = resolved.part("optimizer").registration.load()  # type: ignore[assignment]
    return algorithm.consumes


def _need(resolved: Resolved, table: str, who: str) -> None:
    if table not in resolved.names:
        raise InputError(f"no [{table}] table, needed by {who}", where=table, fix=f"add [{table}] or --{table} NAME")


def run(
    resolved: Resolved,
    out: Path,
    *,
    stages: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    reporter: Reporter,
) -> dict[str, Any]:
    """Runs the stages of the plan, or exactly the given ones, in the run directory `out`.

    A stage that is given alone takes what earlier ones left in `out`.

    Returns:
        stage name -> what it said.

    Raises:
        InputError: the plan lacks something, or `out` is in use.
    """
    chosen = plan(resolved) if stages is None else _alone(resolved, stages)
    reporter.plan([(stage.key, stage.text) for stage in chosen])

    from alignkit.ops.distributed import process_index, start_processes
    from alignkit.report import write_report
    from alignkit.rundir import RunDir
    from alignkit.stages import Stages

    start_processes()
    alone = stages is not None
    with RunDir(
        out,
        recipe=resolved.to_toml(),
        digest=resolved.digest,
        resume=resume or alone,
        overwrite=overwrite and not alone,
        force=force or alone,
    ) as rundir:
        body = Stages(resolved, rundir, reporter, resume=resume, force=force)
        for stage in chosen:
            if rundir.is_done(stage.key) and ((resume and stage.round) or not alone):
                reporter.note(f"{stage.key}: done before, kept")
                continue
            if alone and not resume:
                _make_room(rundir, stage.key, overwrite=overwrite)
            reporter.stage(stage.key)
            start = time.perf_counter()
            summary = getattr(body, stage.name)(*([stage.round] if stage.round else []))
            rundir.mark_done(stage.key, summary, time.perf_counter() - start)
        if process_index() == 0:
            reporter.note(f"report: {write_report(out, rundir.summary())}")
        return rundir.summary()


def _make_room(rundir: RunDir, stage: str, *, overwrite: bool) -> None:
    """Clears what the stage left before, if asked to; an evaluation may always be done again."""
    from alignkit.ops.distributed import barrier, process_index

    if process_index() == 0 and rundir.has_begun(stage):
        if not overwrite and stage != "eval":
            raise InputError(
                f"the stage {stage} has been run here",
                where=str(rundir.path),
                fix="--resume, --overwrite or another --out",
            )
        rundir.clear(stage)
    barrier()


def sample(
    resolved: Resolved,
    prompts: Path,
    n: int,
    out: Path,
    reporter: Reporter,
    *,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Samples `n` responses to each prompt of a data file from the recipe's policy -> groups in `out`.

    Args:
        columns: new names of the file's columns by their old ones.
    """
    from alignkit.records import write_groups

    spec = {"plugin": "dataset", "path": str(prompts), "columns": dict(columns or {})}
    source: PreferenceSource[Any] = resolved.build_spec("preferences", spec)
    asked = [group.prompt for group in source.preferences(NoSampler())]
    policy: Policy[Any] = resolved.build("policy")
    reporter.note(f"sampling {n} responses to each of {len(asked)} prompts")
    batch = policy.generate(asked, n=n, sampling=resolved.sampling, seed=resolved.run.seed)
    write_groups(out, batch.groups)
    finished = round(float(batch.finished.float().mean()), 4)
    return {"groups": batch.num_groups, "responses": batch.num_responses, "finished": finished, "out": str(out)}


def score(resolved: Resolved, groups: Path, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Scores the responses of a groups file with the recipe's reward -> the same groups with `scores` in `out`."""
    from alignkit.feeds import score_groups
    from alignkit.records import read_groups, write_groups

    records = list(read_groups(groups))
    if not records:
        raise InputError("the file is empty", where=str(groups), fix="give a file of groups, one JSON record a line")
    source: RewardSource[Any] = resolved.build("reward")
    reporter.note(f"scoring {sum(len(record.responses) for record in records)} responses")
    scored = score_groups(source, records)
    write_groups(out, scored)
    values = [value for group in scored for value in group.scores or () if value is not None]
    mean = round(sum(values) / len(values), 4) if values else None
    abstained = sum(len(group.responses) for group in scored) - len(values)
    return {"groups": len(scored), "scores": len(values), "abstained": abstained, "mean": mean, "out": str(out)}


class NoSampler:
    """What a source of data on file is given where there is no policy to sample."""

    prompts: Sequence[Prompt] = ()

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        raise InputError("this source samples responses, which needs a run", fix="use `alignkit preferences`")
