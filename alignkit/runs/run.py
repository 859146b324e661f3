"""Runs a plan, stage by stage, in a run directory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError
from alignkit.runs.first import try_records
from alignkit.runs.plan import plan, stages_alone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.recipe.resolved import Resolved
    from alignkit.runs.reporting import Reporter
    from alignkit.runs.rundir import RunDir


def run_recipe(
    resolved: Resolved,
    out: Path,
    *,
    stages: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    reporter: Reporter,
) -> dict[str, Any]:
    """Runs the stages of the plan, or exactly the given ones, in `out`.

    A given stage uses what earlier ones left in `out`.

    Returns:
        stage name -> its summary.

    Raises:
        InputError: the plan lacks something, or `out` is in use.
    """
    chosen = plan(resolved) if stages is None else stages_alone(resolved, stages)
    reporter.plan([(stage.key, stage.text) for stage in chosen])
    try_records(resolved, chosen)

    from alignkit.ops.distributed import process_index, start_processes
    from alignkit.runs.report import write_report
    from alignkit.runs.rundir import RunDir
    from alignkit.runs.sinks import open_sinks
    from alignkit.runs.stages import Stages

    start_processes()
    alone = stages is not None
    opened = RunDir(
        out,
        recipe=resolved.to_toml(),
        digest=resolved.digest,
        resume=resume or alone,
        overwrite=overwrite and not alone,
        force=force or alone,
    )
    with opened as rundir, open_sinks(resolved, out, reporter.note) as write_to_sinks:
        body = Stages(resolved, rundir, reporter, write_to_sinks, resume=resume, force=force)
        for stage in chosen:
            if rundir.is_done(stage.key) and ((resume and stage.round) or not alone):
                reporter.note(f"{stage.key}: already done, skipped")
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
    """Removes an earlier result of the stage if `overwrite` is set; an evaluation is always replaced."""
    from alignkit.ops.distributed import barrier, process_index

    if process_index() == 0 and rundir.has_begun(stage):
        if not overwrite and stage != "eval":
            raise InputError(
                f"stage {stage} has already run here",
                where=str(rundir.path),
                fix="use --resume, --overwrite or another --out",
            )
        rundir.clear(stage)
    barrier()
