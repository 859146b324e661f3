"""The command `alignkit demo`. Importing this module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import AsJson, Overwrite, Quiet, show


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the models and summary.json.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    compare: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Then run these algorithms on the same rankings and prompts and show them side by side: `all`, or "
            "names with commas between them. A demo that is in the folder already is gone on from.",
        ),
    ] = "",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take a tiny model from raw text through SFT and a reward model to PPO and DPO, in two minutes without a download.

    Its world is a support desk in which the true reward of every reply is known, so the learned one can be checked.
    """
    from alignkit.commands import make_reporter
    from alignkit_demo.comparison import compare as run_comparison
    from alignkit_demo.demo import SUMMARY, run_demo
    from alignkit_demo.table import show_comparison, show_table

    reporter = make_reporter(quiet=quiet, json_lines=as_json)
    summary = comparison = None
    try:
        if overwrite or not compare or not (out / SUMMARY).exists():
            summary = run_demo(out, seed=seed, reporter=reporter, overwrite=overwrite)
        if compare:
            names = [] if compare == "all" else [name.strip() for name in compare.split(",")]
            comparison = run_comparison(out, names, reporter=reporter)
    finally:
        reporter.close()
    if as_json:
        show({**(summary or {}), **({"comparison": comparison} if comparison else {})}, as_json=True)
        return
    if summary:
        show_table(summary, out)
    if comparison:
        show_comparison(comparison)
