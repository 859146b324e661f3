"""`alignkit run` and a command for each of its stages, with the flags that mean something to it."""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import closing
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.cli import launch
from alignkit.cli.help import ADVANCED
from alignkit.commands import flags, show
from alignkit.errors import InputError
from alignkit.runs.reporting import make_reporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set


def _option(kind: Any, default: Any, name: str, text: str, metavar: str | None = None, **more: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(name, metavar=metavar, help=text, **more)], default


def _rare(kind: Any, default: Any, name: str, text: str, metavar: str | None = None) -> tuple[Any, Any]:
    return _option(kind, default, name, text, metavar, rich_help_panel=ADVANCED)


def _number(name: str, text: str, metavar: str, **more: Any) -> tuple[Any, Any]:
    return _option(int | None, None, name, text, metavar, show_default=False, **more)


FLAGS: dict[str, tuple[Any, Any]] = {
    "recipe": (flags.Recipe, None),
    "policy": (flags.PolicyName, ""),
    "sampler": (flags.SamplerName, ""),
    "preferences": (flags.PreferencesName, ""),
    "reward": (flags.RewardName, ""),
    "optimizer": (flags.OptimizerName, ""),
    "plugin": (flags.PluginFiles, None),
    "options": (flags.Overrides, None),
    "columns": (flags.Columns, None),
    "rounds": _number("--rounds", "Rounds of sampling, ranking and aligning (run.rounds).", "N"),
    "best_of": _number("--best-of", "Also measure the best of N samples (eval.best_of).", "N"),
    "tasks": _option(str | None, None, "--tasks", "Also run tasks of lm-eval (eval.tasks).", "A,B", show_default=False),
    "sample": _number("--sample", "Responses per prompt for a labeller to rank (candidates.count).", "K"),
    "out": _option(Path | None, None, "--out", "Run directory. [default: runs/ and the recipe's name]", "DIR"),
    "resume": (flags.Resume, False),
    "overwrite": (flags.Overwrite, False),
    "force": _rare(bool, False, "--force", "Let --resume continue although the recipe has changed."),
    "dry_run": _option(
        bool, False, "--dry-run", "Show the plan and the memory it would take; load no weights and no data."
    ),
    "on": _rare(str, "", "--on", "Type of device for --dry-run: cpu, cuda. [default: this machine's]", "DEVICE"),
    "launch": _rare(
        str, "", "--launch", "Start several processes: torchrun; slurm or sky write the job file that does.", "HOW"
    ),
    "processes": _number("--processes", "Processes on a node, one per GPU.", "N", min=1, rich_help_panel=ADVANCED),
    "nodes": _number("--nodes", "Nodes. [default: 1]", "M", min=1, rich_help_panel=ADVANCED),
    "rendezvous": _rare(str, "", "--rendezvous", "Where the nodes meet; the same command runs on each.", "HOST:PORT"),
    "as_json": (flags.AsJson, False),
    "quiet": (flags.Quiet, False),
}
"""Flag -> its type and default, in the order of --help."""
COMMON = {"recipe", "policy", "plugin", "options", "out", "as_json", "quiet"}
AGAIN = {"resume", "overwrite"}
DRY = {"dry_run", "on"}
LAUNCH = set(launch.FLAGS)
PART_FLAGS = ("policy", "sampler", "preferences", "reward", "optimizer")
SHORTHANDS = {"rounds": "run.rounds", "best_of": "eval.best_of", "tasks": "eval.tasks", "sample": "candidates.count"}


@dataclass(frozen=True)
class Command:
    """A command that runs stages.

    Attributes:
        examples: of its use, one a line.
        flags: those that it takes beside the common ones; what would mean nothing to it, it doesn't know.
        data: the table that --columns is about.
    """

    help: str
    examples: Sequence[str]
    flags: Set[str]
    data: str = "preferences"


COMMANDS = {
    "run": Command(
        "Run the stages a recipe needs: sft, preferences, reward, align, eval.",
        (
            "alignkit run recipe.toml --optimizer dpo --out runs/dpo",
            "alignkit run --policy hf -o policy.model=MODEL -o preferences.path=pairs.jsonl --optimizer dpo",
            "alignkit run recipe.toml --resume --out runs/dpo",
        ),
        FLAGS.keys(),
    ),
    "sft": Command(
        "Fine-tune the policy on demonstrations, into DIR/sft.",
        ("alignkit sft recipe.toml -o demonstrations.path=chats.jsonl --out runs/first",),
        {"columns", "force", *AGAIN, *LAUNCH, *DRY},
        "demonstrations",
    ),
    "preferences": Command(
        "Read or make preferences, into DIR/preferences.jsonl or --out FILE.jsonl.",
        (
            "alignkit preferences recipe.toml --preferences judge --sample 4 --out ranked.jsonl",
            "alignkit preferences recipe.toml --preferences candidates --sample 4 --out unranked.jsonl",
        ),
        {"sampler", "preferences", "columns", "sample", *AGAIN},
    ),
    "reward": Command(
        "Train the reward model on the preferences, into DIR/reward.",
        ("alignkit reward recipe.toml -o reward.loss=infonce --out runs/first",),
        {"reward", "force", *AGAIN, *LAUNCH, *DRY},
    ),
    "align": Command(
        "Align the policy, into DIR/policy.",
        ("alignkit align recipe.toml --optimizer ppo --out runs/first",),
        {"sampler", "preferences", "reward", "optimizer", "rounds", "force", *AGAIN, *LAUNCH, *DRY},
    ),
    "eval": Command(
        "Measure the aligned policy against the initial one.",
        ("alignkit eval recipe.toml --best-of 4 --out runs/first",),
        {"sampler", "reward", "best_of", "tasks"},
    ),
}


def add_commands(app: typer.Typer) -> None:
    """Adds `run` and the stages."""
    for name in COMMANDS:
        _add(app, name)


def _add(app: typer.Typer, name: str) -> None:
    def command(**given: Any) -> None:
        every = {flag: given.get(flag, default) for flag, (_, default) in FLAGS.items()}
        if every["on"] and not every["dry_run"]:
            raise InputError("is for --dry-run", where="--on", fix="to train there: -o run.device=DEVICE")
        if not every["dry_run"] and launch.launches(every):
            _launch(name, every)
        else:
            _start(name, every)

    taken = [(flag, *FLAGS[flag]) for flag in FLAGS if flag in COMMON | COMMANDS[name].flags]
    parameters = [Parameter(flag, Parameter.KEYWORD_ONLY, annotation=a, default=d) for flag, a, d in taken]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    examples = "".join(f"  {line}\n" for line in COMMANDS[name].examples)
    app.command(name, help=f"{COMMANDS[name].help}\n\nExamples:\n{examples}")(command)


def _launch(name: str, given: Mapping[str, Any]) -> None:
    """Starts the command in several processes and ends with its exit code, or writes the job file that does."""
    from alignkit.runs.api import default_folder

    how, processes, nodes = given["launch"], given["processes"], given["nodes"] or 1
    command = [name, *_words(given)]
    if how == "torchrun":
        raise typer.Exit(launch.torchrun(command, processes, nodes, given["rendezvous"]))
    out = given["out"] or default_folder(given["recipe"])
    path = launch.write_job(how, command, out, processes, nodes)
    show({"job": str(path), "submit": f"{launch.SUBMIT[how]} {shlex.quote(str(path))}"}, given["as_json"])


def _words(given: Mapping[str, Any]) -> list[str]:
    """The arguments that give these flags, without those of the launch."""
    words = []
    for flag, value in given.items():
        if flag in LAUNCH or not value:
            continue
        declared = FLAGS[flag][0].__metadata__[0]
        # In an annotation, typer keeps the first name as the default.
        names = (name for name in (declared.default, *(declared.param_decls or ())) if isinstance(name, str))
        option = [name for name in names if name.startswith("--")][:1]
        values = value if isinstance(value, list) else [value]
        words += option if value is True else [word for one in values for word in (*option, str(one))]
    return words


def _start(name: str, given: Mapping[str, Any]) -> None:
    """Reads the recipe, and runs the stages of the command `name`."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from alignkit.ops.distributed import start_processes

        start_processes()  # first, so that one process tells of an error and all end
    from alignkit.recipe.reading import read_recipe
    from alignkit.runs.api import default_folder, run_resolved

    reporter = make_reporter(quiet=given["quiet"], json_lines=given["as_json"])
    short = {key: given[flag] for flag, key in SHORTHANDS.items() if given[flag] is not None}
    shorthands = [f"{key}={said.split(',') if isinstance(said, str) else said}" for key, said in short.items()]
    columns = flags.column_overrides(COMMANDS[name].data, given["columns"])
    resolved = read_recipe(
        given["recipe"],
        flags={flag: given[flag] for flag in PART_FLAGS},
        overrides=[*shorthands, *(given["options"] or ()), *columns],
        note=reporter.note,
    )
    if given["sample"] and not ("preferences" in resolved.names and resolved.load("preferences").samples):
        fix = "--preferences judge, or candidates (unranked)"
        raise InputError("needs a source that samples responses", where="--sample", fix=fix)
    if given["dry_run"]:
        from alignkit.runs.dry import PROCESSES, dry_run, told

        counts = (given["processes"] * (given["nodes"] or 1),) if given["processes"] else PROCESSES
        found = dry_run(resolved, None if name == "run" else [name], device=given["on"], processes=counts)
        show(found if given["as_json"] else told(found), given["as_json"])
        return
    out: Path = given["out"] or default_folder(given["recipe"])
    to_file = name == "preferences" and out.suffix == ".jsonl"
    folder = out.with_name(f"{out.name}.run") if to_file else out
    switches = {switch: given[switch] for switch in ("resume", "overwrite", "force")}
    with closing(reporter):
        done = run_resolved(resolved, folder, stages=None if name == "run" else [name], reporter=reporter, **switches)
    if to_file:
        shutil.copyfile(folder / "preferences.jsonl", out)
    show({**done.summary, "out": str(out)}, given["as_json"])
