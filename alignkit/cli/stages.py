"""`alignkit run` and a command for each of its stages, with the flags that mean something to it."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from inspect import Parameter, Signature
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
    SamplerName,
    column_overrides,
    show,
)
from alignkit.errors import InputError
from alignkit.recipe.reading import read_recipe
from alignkit.runs.api import default_folder, run_resolved

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from alignkit.recipe.resolved import Resolved
    from alignkit.runs.reporting import Reporter

Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run directory. [default: runs/ and the recipe's name]")
]
Force = Annotated[bool, typer.Option("--force", help="Let --resume continue although the recipe has changed.")]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds", metavar="N", help="Rounds of sampling, ranking and aligning (run.rounds).", show_default=False
    ),
]
BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of", metavar="N", help="Also measure the best of N samples (eval.best_of).", show_default=False
    ),
]
Sample = Annotated[
    int | None,
    typer.Option(
        "--sample",
        metavar="K",
        help="Responses per prompt for a labeller to rank (candidates.count).",
        show_default=False,
    ),
]

FLAGS: dict[str, tuple[Any, Any]] = {
    "recipe": (Recipe, None),
    "policy": (PolicyName, ""),
    "sampler": (SamplerName, ""),
    "preferences": (PreferencesName, ""),
    "reward": (RewardName, ""),
    "optimizer": (OptimizerName, ""),
    "options": (Overrides, None),
    "columns": (Columns, None),
    "rounds": (Rounds, None),
    "best_of": (BestOf, None),
    "sample": (Sample, None),
    "out": (Out, None),
    "resume": (Resume, False),
    "overwrite": (Overwrite, False),
    "force": (Force, False),
    "as_json": (AsJson, False),
    "quiet": (Quiet, False),
}
"""Flag -> its type and default, in the order of --help."""
COMMON = {"recipe", "policy", "options", "out", "as_json", "quiet"}
AGAIN = {"resume", "overwrite"}
PART_FLAGS = ("policy", "sampler", "preferences", "reward", "optimizer")
NUMBER_FLAGS = {"rounds": "run.rounds", "best_of": "eval.best_of", "sample": "candidates.count"}


@dataclass(frozen=True)
class Command:
    """A command that runs stages.

    Attributes:
        flags: those that it takes beside the common ones; what would mean nothing to it, it doesn't know.
        data: the table that --columns is about.
    """

    help: str
    flags: Set[str]
    data: str = "preferences"


COMMANDS = {
    "run": Command("Run the stages a recipe needs: sft, preferences, reward, align, eval.", FLAGS.keys()),
    "sft": Command(
        "Fine-tune the policy on demonstrations, into DIR/sft.", {"columns", "force", *AGAIN}, "demonstrations"
    ),
    "preferences": Command(
        "Read or make preferences, into DIR/preferences.jsonl or --out FILE.jsonl.",
        {"sampler", "preferences", "columns", "sample", *AGAIN},
    ),
    "reward": Command("Train the reward model on the preferences, into DIR/reward.", {"reward", "force", *AGAIN}),
    "align": Command(
        "Align the policy, into DIR/policy.",
        {"sampler", "preferences", "reward", "optimizer", "rounds", "force", *AGAIN},
    ),
    "eval": Command("Measure the aligned policy against the initial one.", {"sampler", "reward", "best_of"}),
}


def add_commands(app: typer.Typer) -> None:
    """Adds `run` and the stages."""
    for name in COMMANDS:
        _add(app, name)


def _add(app: typer.Typer, name: str) -> None:
    def command(**given: Any) -> None:
        _start(name, {flag: given.get(flag, default) for flag, (_, default) in FLAGS.items()})

    taken = [flag for flag in FLAGS if flag in COMMON | COMMANDS[name].flags]
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(flag, Parameter.KEYWORD_ONLY, annotation=FLAGS[flag][0], default=FLAGS[flag][1]) for flag in taken]
    )
    app.command(name, help=COMMANDS[name].help)(command)


def _start(name: str, given: Mapping[str, Any]) -> None:
    """Reads the recipe, and runs the stages of the command `name`."""
    from alignkit.runs.reporting import make_reporter

    reporter = make_reporter(quiet=given["quiet"], json_lines=given["as_json"])
    shorthands = [f"{key}={given[flag]}" for flag, key in NUMBER_FLAGS.items() if given[flag] is not None]
    columns = column_overrides(COMMANDS[name].data, given["columns"])
    resolved = read_recipe(
        given["recipe"],
        flags={flag: given[flag] for flag in PART_FLAGS},
        overrides=[*shorthands, *(given["options"] or ()), *columns],
        note=reporter.note,
    )
    if given["sample"] and not ("preferences" in resolved.names and resolved.load("preferences").samples):
        fix = "--preferences judge, or candidates (unranked)"
        raise InputError("needs a source that samples responses", where="--sample", fix=fix)
    out = given["out"] or default_folder(given["recipe"])
    switches = {switch: given[switch] for switch in ("resume", "overwrite", "force")}
    show(_run(resolved, name, out, switches, reporter), given["as_json"])


def _run(resolved: Resolved, name: str, out: Path, switches: dict[str, bool], reporter: Reporter) -> dict[str, Any]:
    to_file = name == "preferences" and out.suffix == ".jsonl"
    folder = out.with_name(f"{out.name}.run") if to_file else out
    with closing(reporter):
        done = run_resolved(resolved, folder, stages=None if name == "run" else [name], reporter=reporter, **switches)
    if to_file:
        shutil.copyfile(folder / "preferences.jsonl", out)
    return {**done.summary, "out": str(out)}
