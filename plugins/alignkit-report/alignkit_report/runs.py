"""`alignkit runs`: what run directories hold, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit import InputError, Run, StoppedByCheck
from alignkit.commands import AsJson, show

app = typer.Typer(help="List, show and verify run directories.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with run directories, at any depth.")]
OneRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command("list")
def list_runs(folder: Folder = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs below a folder: the algorithm, the stages that are done, and how often it beats its start.

    Examples:
        alignkit runs list
    """
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), fix="give a folder that holds run directories")
    show({str(path.parent): _done(Run.open(path.parent)) for path in sorted(folder.rglob("run.json"))}, as_json)


@app.command("show")
def show_run(run: OneRun, as_json: AsJson = False) -> None:
    """Show what each stage of a run came to.

    Examples:
        alignkit runs show runs/first
    """
    show(Run.open(run).summary, as_json)


@app.command()
def verify(run: OneRun, as_json: AsJson = False) -> None:
    """Check a run's files: run.json, and the size and hash of every file of its checkpoints.

    Examples:
        alignkit runs verify runs/first
    """
    problems = Run.open(run).problems()
    if problems:
        raise StoppedByCheck("\n  ".join([f"{run}: {len(problems)} damaged:", *problems]))
    result: dict[str, Any] = {"run": str(run), "damaged": 0}
    show(result, as_json)


def _done(run: Run) -> str:
    """`dpo: reward, align, eval; wins 56% [44, 68] by reward`"""
    from alignkit_report.compare.table import percent
    from alignkit_report.pages.of_run import recipe_of

    try:
        stages, recipe = run.stages, recipe_of(run)
    except InputError as error:
        return error.what
    wins = [
        f"; wins {percent(said)} by {name.partition('/')[2]}"
        for name, said in stages.get("eval", {}).items()
        if name.startswith("win_rate/") and name.count("/") == 1
    ]
    done = ", ".join(stages) or "no stage is done"
    algorithm = recipe.get("optimizer", {}).get("plugin", "")
    return f"{algorithm}: {done}{''.join(wins)}" if algorithm else done
