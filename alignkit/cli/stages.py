"""`alignkit run` and a command for each of its stages: one signature, for they differ only in what they run."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.commands import (
    AsJson,
    Columns,
    OptimizerName,
    Overrides,
    Overwrite,
    PolicyName,
    PreferencesName,
    Quiet,
    Recipe,
    Resume,
    RewardName,
    column_overrides,
    show,
)
from alignkit.errors import InputError
from alignkit.recipe.reading import read_recipe
from alignkit.runs.api import default_folder, run_resolved

if TYPE_CHECKING:
    from alignkit.recipe.resolved import Resolved
    from alignkit.runs.reporting import Reporter

Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run directory. [default: runs/ and the recipe's name]")
]
Force = Annotated[bool, typer.Option("--force", help="Go on with --resume although the recipe has changed.")]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds", metavar="N", help="Rounds of sampling, ranking and aligning: run.rounds.", show_default=False
    ),
]
BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of", metavar="N", help="Also measure the best of N samples: eval.best_of.", show_default=False
    ),
]
Sample = Annotated[
    int | None,
    typer.Option(
        "--sample",
        metavar="K",
        help="Responses to each prompt for a labeller to rank: candidates.count.",
        show_default=False,
    ),
]

COMMANDS = {
    "run": "Run the stages that a recipe needs: sft, preferences, reward, align, eval.",
    "sft": "Fine-tune the policy on demonstrations, into DIR/sft.",
    "preferences": "Read or make preferences, into DIR/preferences.jsonl; or --out FILE.jsonl.",
    "reward": "Train the reward model on the preferences, into DIR/reward.",
    "align": "Align the policy, into DIR/policy.",
    "eval": "Measure the aligned policy against the one it started from.",
}


def add_commands(app: typer.Typer) -> None:
    """Adds `run` and the stages."""
    for name, text in COMMANDS.items():
        _add(app, name, text)


def _add(app: typer.Typer, name: str, text: str) -> None:
    @app.command(name, help=text)
    def command(
        recipe: Recipe = None,
        policy: PolicyName = "",
        preferences: PreferencesName = "",
        reward: RewardName = "",
        optimizer: OptimizerName = "",
        options: Overrides = None,
        columns: Columns = None,
        rounds: Rounds = None,
        best_of: BestOf = None,
        sample: Sample = None,
        out: Out = None,
        resume: Resume = False,
        overwrite: Overwrite = False,
        force: Force = False,
        as_json: AsJson = False,
        quiet: Quiet = False,
    ) -> None:
        from alignkit.runs.reporting import make_reporter

        reporter = make_reporter(quiet=quiet, json_lines=as_json)
        flags = {"policy": policy, "preferences": preferences, "reward": reward, "optimizer": optimizer}
        data_table = "demonstrations" if name == "sft" else "preferences"
        numbers = {"run.rounds": rounds, "eval.best_of": best_of, "candidates.count": sample}
        shorthands = [f"{key}={number}" for key, number in numbers.items() if number is not None]
        overrides = [*shorthands, *(options or ()), *column_overrides(data_table, columns)]
        resolved = read_recipe(recipe, flags=flags, overrides=overrides, note=reporter.note)
        if sample and not ("preferences" in resolved.names and resolved.load("preferences").samples):
            raise InputError(
                "no labeller asks for responses", where="--sample", fix="--preferences judge, or candidates for none"
            )
        target = out or default_folder(recipe)
        switches = {"resume": resume, "overwrite": overwrite, "force": force}
        show(_run(resolved, name, target, switches, reporter), as_json)


def _run(resolved: Resolved, name: str, out: Path, switches: dict[str, bool], reporter: Reporter) -> dict[str, Any]:
    to_file = name == "preferences" and out.suffix == ".jsonl"
    folder = out.with_name(f"{out.name}.run") if to_file else out
    with closing(reporter):
        done = run_resolved(resolved, folder, stages=None if name == "run" else [name], reporter=reporter, **switches)
    if to_file:
        shutil.copyfile(folder / "preferences.jsonl", out)
    return {**done.summary, "out": str(out)}
