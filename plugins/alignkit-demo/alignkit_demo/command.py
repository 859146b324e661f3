"""The command `alignkit demo`. Importing this module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.common import AsJson, Overwrite, Quiet, show


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the models and summary.json.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take a tiny model from raw text through SFT and a reward model to PPO and DPO, in two minutes without a download.

    Its world is a support desk in which the true reward of every reply is known, so the learned one can be checked.
    """
    from alignkit.reporting import make_reporter
    from alignkit_demo.demo import run_demo
    from alignkit_demo.table import show_table

    reporter = make_reporter(quiet=quiet, json_lines=as_json)
    try:
        summary = run_demo(out, seed=seed, reporter=reporter, overwrite=overwrite)
    finally:
        reporter.close()
    if as_json:
        show(summary, as_json=True)
    else:
        show_table(summary, out)
