"""`alignkit rewards check`: how well a reward orders pairs, and whether its margins are log-odds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit import InputError, visible
from alignkit.commands import (
    AsJson,
    Columns,
    Overrides,
    Quiet,
    RecipeOption,
    RewardName,
    column_names,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignkit import Group

app = typer.Typer(help="Measure rewards.", no_args_is_help=True)

Pairs = Annotated[
    Path, typer.Argument(metavar="FILE", help="Preferences in any form that `dataset` reads, RewardBench's too.")
]
By = Annotated[
    str, typer.Option("--by", metavar="COLUMN", help="Column with each pair's category. [default: subset, if there is]")
]
REWARDBENCH = "subset"


@app.callback()
def rewards() -> None:
    """Measure rewards."""


@app.command()
def check(
    file: Pairs,
    recipe: RecipeOption = None,
    reward: RewardName = "",
    by: By = "",
    options: Overrides = None,
    columns: Columns = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a reward orders the pairs of a file: accuracy and calibration, also by category.

    Of RewardBench's files also its sections.

    Examples:
        alignkit rewards check pairs.jsonl --reward model -o reward.model=runs/first/reward
        alignkit rewards check pairs.jsonl --reward my_rewards:politeness --by topic
    """
    from alignkit_data import Dataset

    from alignkit.algorithms import score_groups
    from alignkit.commands import make_reporter, read_recipe
    from alignkit_report.measures.calibration import Pairs, of_reward

    reporter = make_reporter(quiet=quiet, json_lines=as_json)
    resolved = read_recipe(recipe, flags={"reward": reward}, overrides=options or (), note=reporter.note)
    resolved.part("reward")
    if "reward.train" in resolved:
        raise InputError("is not trained yet", where="reward", fix="-o reward.model=RUN/reward, of the run that did")
    groups = [group for group in Dataset.of_file(file, column_names(columns)).groups() if group.preferred_pairs()]
    category = by or (REWARDBENCH if groups and all(REWARDBENCH in group.prompt.meta for group in groups) else "")
    _check_category(file, groups, category)
    reporter.note(f"scoring the responses of {len(groups)} groups")
    scored = Pairs.of(score_groups(resolved.build("reward"), groups), category)
    found = {"file": str(file), "abstained": _pairs(groups) - len(scored.margins), "by": category, **of_reward(scored)}
    if as_json:
        show(found, as_json=True)
    else:
        _show(found)


def _check_category(file: Path, groups: Sequence[Group], category: str) -> None:
    if not groups:
        raise InputError("no pair is ordered", where=str(file), fix="give chosen and rejected replies, or ranks")
    if category and not any(category in group.prompt.meta for group in groups):
        known = sorted({name for group in groups for name in group.prompt.meta})
        raise InputError(f"no column {category!r}", where="--by", fix=f"one of {', '.join(known) or 'none'}")


def _pairs(groups: Sequence[Group]) -> int:
    return sum(len(group.preferred_pairs()) for group in groups)


def _show(found: Mapping[str, Any]) -> None:
    if "pairs" not in found:
        print(f"The reward abstained on all {found['abstained']} pairs.")
        return
    from rich.console import Console
    from rich.table import Table

    from alignkit_report.compare.table import interval, percent

    console = Console(highlight=False)
    table = Table("", "pairs", "accuracy", "Brier", "calibration error", box=None, pad_edge=False)
    for name, row in {"all": found, **found.get("categories", {})}.items():
        errors = (_told(row[key], interval) for key in ("brier", "calibration_error"))
        table.add_row(visible(name), str(row["pairs"]), _told(row["accuracy"], percent), *errors)
    console.print(table)
    if found["abstained"]:
        console.print(f"The reward abstained on {found['abstained']} more pairs.")
    if "sections" in found:
        sections = ", ".join(f"{name} {share:.1%}" for name, share in found["sections"].items())
        console.print(f"RewardBench: {sections}; their mean {found['mean_of_sections']:.1%}")
    sure = Table("it says", "pairs", "mean", "right", box=None, pad_edge=False)
    for row in found["reliability"]:
        bounds = f"{row['from']:.0%} to {row['to']:.0%}"
        sure.add_row(bounds, str(row["n"]), f"{row['said']:.1%}", f"{row['right']:.1%}")
    console.print(sure)


def _told(figure: Mapping[str, float], how: Callable[[Mapping[str, float]], str]) -> str:
    return how(figure) if figure["low"] is not None else f"{figure['value']:.2f}"
