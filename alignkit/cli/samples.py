"""`alignkit sample` and `alignkit score`: from a file to a groups file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.commands import (
    AsJson,
    Columns,
    Overrides,
    Overwrite,
    PolicyName,
    Quiet,
    RecipeOption,
    Resume,
    RewardName,
    SamplerName,
    column_names,
    show,
)
from alignkit.errors import InputError
from alignkit.recipe.reading import read_recipe

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
    recipe: RecipeOption = None,
    policy: PolicyName = "",
    sampler: SamplerName = "",
    options: Overrides = None,
    columns: Columns = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Sample responses from a policy."""
    from alignkit.runs import single
    from alignkit.runs.reporting import make_reporter

    reporter = make_reporter(quiet=quiet, json_lines=as_json)
    renamed = column_names(columns)
    resolved = read_recipe(
        recipe, flags={"policy": policy, "sampler": sampler}, overrides=options or (), note=reporter.note
    )
    resolved.part("policy")

    def write() -> dict[str, Any]:
        return single.sample(resolved, prompts, n, out, reporter, columns=renamed)

    show(_into(out, resume, overwrite, write), as_json)


def score(
    groups: Groups,
    out: Out,
    recipe: RecipeOption = None,
    reward: RewardName = "",
    options: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score the responses of groups with a reward."""
    from alignkit.runs import single
    from alignkit.runs.reporting import make_reporter

    reporter = make_reporter(quiet=quiet, json_lines=as_json)
    resolved = read_recipe(recipe, flags={"reward": reward}, overrides=options or (), note=reporter.note)
    resolved.part("reward")
    if "reward.train" in resolved:
        raise InputError(
            "this reward must be trained first", where="reward", fix="-o reward.model=DIR with a trained reward model"
        )
    if not groups.is_file():
        raise InputError("no such file", where=str(groups), fix="check the path")
    show(_into(out, resume, overwrite, lambda: single.score(resolved, groups, out, reporter)), as_json)


def _into(out: Path, resume: bool, overwrite: bool, write: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Writes the file. If it exists, --resume keeps it, --overwrite replaces it, and otherwise it is an error."""
    if out.exists() and resume:
        return {"out": str(out), "kept": True}
    if out.exists() and not overwrite:
        raise InputError("already exists", where=str(out), fix="use --overwrite, or choose another --out")
    return write()
