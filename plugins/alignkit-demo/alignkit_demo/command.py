"""The command `alignkit demo`. Importing this module imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the models and summary.json.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a demo in that folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print summary.json instead of the table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing while it runs.")] = False,
) -> None:
    """Take a tiny model from raw text through SFT and a reward model to PPO and DPO, in two minutes without a download.

    Its world is a support desk in which the true reward of every reply is known, so the learned one can be checked.
    """
    from alignkit.reporting import make_reporter
    from alignkit_demo.demo import run_demo
    from alignkit_demo.table import show

    reporter = make_reporter(quiet=quiet, json_lines=json_output)
    try:
        summary = run_demo(out, seed=seed, reporter=reporter, overwrite=overwrite)
    finally:
        reporter.close()
    if json_output:
        print(json.dumps(summary, indent=1))
    else:
        show(summary, out)
