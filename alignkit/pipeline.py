"""Which stages a recipe needs, in which order, and what passes between them: files, so that each restarts alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError
from alignkit.interfaces import Feed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.recipe import Resolved
    from alignkit.reporting import Reporter

ORDER = ("sft", "preferences", "reward", "align", "eval")


@dataclass(frozen=True)
class Stage:
    """A stage of the plan and what it does, for people."""

    name: str
    text: str


def plan(resolved: Resolved) -> list[Stage]:
    """The stages that the recipe's tables and its algorithm's `consumes` call for.

    Raises:
        InputError: a table that the algorithm needs is missing.
    """
    names = resolved.names
    stages: list[Stage] = []
    if "demonstrations" in names:
        stages.append(Stage("sft", f"{names['sft']} on the demonstrations of {names['demonstrations']}"))
    training = reward_training(resolved)
    consumes = resolved.load("optimizer").consumes if "optimizer" in names else None
    if training or consumes in (Feed.RANKINGS, Feed.LABELS) or ("preferences" in names and consumes is None):
        _need(resolved, "preferences", "an algorithm or reward model that learns from preferences")
        stages.append(Stage("preferences", f"from {names['preferences']}"))
    if training:
        stages.append(Stage("reward", f"reward model by {training[0]}"))
    if consumes is Feed.ROLLOUTS:
        _need(resolved, "reward", f"{names['optimizer']}, which learns from scored rollouts")
        if "prompts" not in names and "preferences" not in names:
            _need(resolved, "prompts", f"{names['optimizer']}, which samples responses to prompts")
    if consumes is Feed.DEMONSTRATIONS:
        raise InputError(
            f"{names['optimizer']} learns from demonstrations",
            where="optimizer.plugin",
            fix="use it in the [sft] table, with a [demonstrations] table",
        )
    if consumes is not None:
        stages.append(Stage("align", f"{names['optimizer']} on {consumes.value}"))
        stages.append(Stage("eval", "the policy against the one it started from"))
    if not stages:
        raise InputError(
            "nothing to do: the recipe has no [demonstrations], [preferences] or [optimizer] table",
            fix="add one, or use --optimizer and --preferences",
        )
    return stages


def reward_training(resolved: Resolved) -> tuple[str, dict[str, Any]] | None:
    """(Optimizer, options) that train the recipe's reward source, or None where nothing is to be trained."""
    if "reward" not in resolved.names:
        return None
    training = getattr(resolved.config("reward"), "training", None)
    found = training() if training else None
    return None if found is None else (found[0], dict(found[1]))


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
    chosen = plan(resolved) if stages is None else [Stage(name, "") for name in ORDER if name in stages]
    reporter.plan([(stage.name, stage.text) for stage in chosen])

    from alignkit.rundir import RunDir
    from alignkit.stages import Stages

    resume = resume or (stages is not None and not overwrite and (out / "run.json").exists())
    with RunDir(
        out,
        recipe=resolved.to_toml(),
        digest=resolved.digest,
        resume=resume,
        overwrite=overwrite,
        force=force or stages is not None,
    ) as rundir:
        body = Stages(resolved, rundir, reporter, resume=resume)
        for stage in chosen:
            if stages is None and rundir.is_done(stage.name):
                reporter.note(f"{stage.name}: done before, kept")
                continue
            reporter.stage(stage.name)
            start = time.perf_counter()
            summary = getattr(body, stage.name)()
            rundir.mark_done(stage.name, summary, time.perf_counter() - start)
        return rundir.summary()
