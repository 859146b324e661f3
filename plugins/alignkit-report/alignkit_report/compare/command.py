"""The command `alignkit compare`."""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from alignkit import InputError
from alignkit.commands import AsJson, Overrides, PluginFiles, Quiet, Recipe, make_reporter, show
from alignkit_report.compare.budget import Budget
from alignkit_report.compare.cells import cells_of, sweeps_of

Names = Annotated[
    str, typer.Option("--optimizers", metavar="A,B", help="Algorithms to compare. [default: the recipe's own]")
]
Sweeps = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="KEY=A,B", help="Also compare these values of any option. Repeatable."),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Runs of each, with the seeds 0 to N-1.")]
BudgetText = Annotated[
    str,
    typer.Option(
        "--budget",
        metavar="UNIT=N",
        help="What each run may spend in its alignment: prompts=N, response_tokens=N, seconds=N or flops=N.",
    ),
]
Gold = Annotated[
    str,
    typer.Option(
        "--gold", metavar="NAME", help="Reward that nobody optimises, to measure by: a plugin, or module:function."
    ),
]
Judge = Annotated[
    str,
    typer.Option(
        "--judge", metavar="NAME", help="The reward that decides duels. [default: gold, else the first of eval.rewards]"
    ),
]
Beside = Annotated[
    bool,
    typer.Option("--side-by-side", help="The judge, a language model, compares replies in both orders; see --judge."),
]
BestOf = Annotated[
    int,
    typer.Option(
        "--best-of",
        min=0,
        metavar="N",
        help="Also measure best of n of the start, for n up to N. Needs gold.",
    ),
]
AtOnce = Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Runs at the same time; they share the cores.")]
On = Annotated[
    Literal["here", "ray"], typer.Option("--on", help="Where runs run: on this machine, or on a Ray cluster.")
]
Resources = Annotated[
    str,
    typer.Option(
        "--resources",
        metavar="cpus=N,gpus=N",
        help="What Ray reserves for each run. [default: 1 CPU, 1 GPU if there are any]",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the comparison.")]


def compare(
    recipe: Recipe = None,
    optimizers: Names = "",
    sweep: Sweeps = None,
    seeds: Seeds = 1,
    budget: BudgetText = "",
    gold: Gold = "",
    judge: Judge = "",
    side_by_side: Beside = False,
    best_of: BestOf = 0,
    jobs: AtOnce = 1,
    on: On = "here",
    resources: Resources = "",
    plugin: PluginFiles = None,
    options: Overrides = None,
    out: Out = Path("comparison"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare algorithms, or values of any option, on one recipe, under one budget, over several seeds.

    Stages before alignment run once and are shared. The same command again continues: what is done is not repeated.

    Examples:
        alignkit compare recipe.toml --optimizers dpo,ipo,kto --seeds 3
        alignkit compare recipe.toml --sweep optimizer.beta=0.05,0.1,0.5
    """
    from alignkit_report.compare.cluster import OnRay, resources_of
    from alignkit_report.compare.comparison import Comparison
    from alignkit_report.compare.table import show_comparison

    names = [name.strip() for name in optimizers.split(",")] if optimizers else []
    cells = cells_of(names, sweeps_of(sweep or ()), range(seeds))
    if out.is_dir() and any(out.iterdir()) and not any((out / name).is_dir() for name in ("shared", "runs")):
        raise InputError("is not empty and holds no comparison", where=f"--out {out}", fix="choose a new folder")
    files = [f"run.plugins={json.dumps(list(map(str, plugin)))}"] if plugin else []
    given = [*files, *(options or ()), *([f"eval.rewards.gold={_spec(gold)}"] if gold else [])]
    if resources and on != "ray":
        raise InputError("has no effect without --on ray", where="--resources", fix="leave it out")
    place = partial(OnRay, *resources_of(resources)) if on == "ray" else None
    comparison = Comparison(recipe, cells, out, given, judge, Budget.of(budget), jobs, place, best_of, side_by_side)
    with closing(make_reporter(quiet=quiet, json_lines=as_json)) as reporter:
        found = comparison.run(reporter)
    if as_json:
        show(found, as_json=True)
    else:
        show_comparison(found)
    if not found["variants"]:
        raise typer.Exit(1)


def _spec(name: str) -> str:
    """A reward by its plugin's name, or a function, as TOML."""
    return f'{{plugin="function", function="{name}"}}' if ":" in name else f'{{plugin="{name}"}}'
