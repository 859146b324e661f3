"""`alignkit sample` and `alignkit score`: from a file to a groups file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.commands import flags, show
from alignkit.errors import InputError
from alignkit.runs.reporting import make_reporter

if TYPE_CHECKING:
    from collections.abc import Callable

Prompts = Annotated[
    Path, typer.Argument(metavar="PROMPTS", help="Data with prompts, in any form that `dataset` reads.")
]
Groups = Annotated[Path, typer.Argument(metavar="GROUPS", help="A JSONL file of groups.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="JSONL file to write the groups to.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, help="Responses per prompt.")]


def add_commands(app: typer.Typer) -> None:
    """Adds `sample` and `score`."""
    app.command("sample")(sample)
    app.command("score")(score)


def sample(
    prompts: Prompts,
    out: Out,
    n: Count = 1,
    recipe: flags.RecipeOption = None,
    policy: flags.PolicyName = "",
    sampler: flags.SamplerName = "",
    _plugin: flags.PluginFiles = None,
    options: flags.Overrides = None,
    columns: flags.Columns = None,
    resume: flags.Resume = False,
    overwrite: flags.Overwrite = False,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> None:
    """Sample responses from a policy.

    Examples:
        alignkit sample prompts.jsonl -n 4 -o policy.model=runs/first/policy --out samples.jsonl
    """
    from alignkit.recipe.reading import read_recipe
    from alignkit.runs import single

    reporter = make_reporter(quiet=quiet, json_lines=as_json)
    renamed = flags.column_names(columns)
    parts = {"policy": policy, "sampler": sampler}
    resolved = read_recipe(recipe, flags=parts, overrides=options or (), note=reporter.note)
    resolved.part("policy")
    write = partial(single.sample, resolved, prompts, n, out, reporter, columns=renamed)
    show(_into(out, resume, overwrite, write), as_json)


def score(
    groups: Groups,
    out: Out,
    recipe: flags.RecipeOption = None,
    reward: flags.RewardName = "",
    _plugin: flags.PluginFiles = None,
    options: flags.Overrides = None,
    resume: flags.Resume = False,
    overwrite: flags.Overwrite = False,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> None:
    """Score the responses of groups with a reward.

    Examples:
        alignkit score samples.jsonl --reward rules -o reward.length.target=12 --out scored.jsonl
        alignkit score samples.jsonl --reward my_rewards:politeness --out scored.jsonl
    """
    from alignkit.recipe.reading import read_recipe
    from alignkit.runs import single

    reporter = make_reporter(quiet=quiet, json_lines=as_json)
    resolved = read_recipe(recipe, flags={"reward": reward}, overrides=options or (), note=reporter.note)
    resolved.part("reward")
    if "reward.train" in resolved:
        raise InputError(
            "this reward must be trained first", where="reward", fix="-o reward.model=DIR with a trained reward model"
        )
    if not groups.is_file():
        raise InputError("no such file", where=str(groups), fix="check the path")
    show(_into(out, resume, overwrite, partial(single.score, resolved, groups, out, reporter)), as_json)


def _into(out: Path, resume: bool, overwrite: bool, write: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Writes the file. If it exists, --resume keeps it, --overwrite replaces it, and otherwise it is an error."""
    if out.exists() and resume:
        return {"out": str(out), "kept": True}
    if out.exists() and not overwrite:
        raise InputError("already exists", where=str(out), fix="use --overwrite, or choose another --out")
    return write()
