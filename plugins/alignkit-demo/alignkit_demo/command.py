"""The command `alignkit demo`. Importing this module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import AsJson, Overwrite, Quiet, show


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the models and summary.json.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    compare: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Then compare these algorithms, as `alignkit compare` does on the folder's comparison.toml: `all`, or "
            "names separated by commas. Continues the demo in this folder, if there is one.",
        ),
    ] = "",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take a tiny model from raw text through SFT and a reward model to PPO and DPO, in two minutes without a download.

    In its world, a support desk, the true reward of every reply is known, so you can check the learned reward.

    Examples:
        alignkit demo
        alignkit demo --compare dpo,kto,grpo
    """
    from alignkit_report.compare.table import show_comparison

    from alignkit.commands import make_reporter
    from alignkit_demo.comparison import compare as run_comparison
    from alignkit_demo.demo import SUMMARY, run_demo
    from alignkit_demo.table import show_table

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
