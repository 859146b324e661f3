"""Runs a plan, stage by stage, in a run directory."""

from __future__ import annotations

import time
from contextlib import closing
from signal import SIGINT
from typing import TYPE_CHECKING, Any

from alignkit.errors import Interrupted, StoppedByCheck
from alignkit.runs.first import try_records
from alignkit.runs.plan import plan, stages_alone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.recipe.resolved import Resolved
    from alignkit.runs.reporting import Reporter
    from alignkit.runs.results import Run


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

    from alignkit.files import telling_when_full
    from alignkit.ops.distributed import start_processes
    from alignkit.runs.results import Run
    from alignkit.runs.rundir import RunDir
    from alignkit.runs.sinks import open_sinks
    from alignkit.runs.stages import Stages

    start_processes()
    alone = stages is not None
    opened = RunDir(
        out,
        recipe=resolved.to_toml(),
        digest=resolved.digest,
        plugins=resolved.registry.files,
        resume=resume,
        overwrite=overwrite,
        force=force,
        alone=[stage.key for stage in chosen] if alone else (),
    )
    sinks = open_sinks(resolved, out, reporter.note)
    with opened as rundir, sinks as write_to_sinks, closing(resolved.sampler(out)) as sampler:
        body = Stages(resolved, rundir, reporter, write_to_sinks, sampler, resume=resume, force=force)
        for stage in chosen:
            if rundir.is_done(stage.key) and ((resume and stage.round) or not alone):
                reporter.note(f"{stage.key}: already done, skipped")
                continue
            reporter.stage(stage.key)
            start = time.perf_counter()
            try:
                with telling_when_full(out, f"the files of {stage.key}"):
                    summary = getattr(body, stage.name)(*([stage.round] if stage.round else []))
            except KeyboardInterrupt:
                raise Interrupted(
                    SIGINT, f"stopped by SIGINT in {stage.key}; what {out} holds is kept: continue with --resume"
                ) from None
            except StoppedByCheck:
                _report(Run(out, resolved=resolved, stages=rundir.summary()), reporter)
                raise
            rundir.mark_done(stage.key, summary, time.perf_counter() - start)
        _report(Run(out, resolved=resolved, stages=rundir.summary()), reporter)
        return rundir.summary()


def _report(run: Run, reporter: Reporter) -> None:
    from alignkit.ops.distributed import process_index

    if process_index() == 0:
        written = run.write_reports()
        reporter.note(f"report: {written}" if written else "no report.html: pip install alignkit-report")
