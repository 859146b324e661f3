"""A run as a report."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from alignkit_report.pages import answers, overopt, reward_model, series
from alignkit_report.pages.colours import START
from alignkit_report.pages.document import (
    NUMBER,
    Column,
    Document,
    KeyFigure,
    Listing,
    Section,
    Table,
)
from alignkit_report.pages.numbers import digits_of, duration, interval, number, percent
from alignkit_report.pages.policies import figures_of, tables
from alignkit_report.pages.replies import agreement, distributions, side_by_side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group, Run

SHORTENED = 4
"""Longest name of an algorithm that is an abbreviation."""
MAIN = ("kl", "kl_bound", "tokens", "finished")
"""Figures of every policy's replies that stand beside win rates and rewards."""


def document_of(run: Run) -> Document:
    """The report of a run, finished or not."""
    stages, recipe = run.stages, recipe_of(run)
    ours, theirs = names_of(stages, recipe)
    measured = stages.get("eval", {})
    alarms, metrics = run.alarms, run.metrics
    policies = {_named(name, ours, theirs): name for name in measured if name.partition(",")[0] in ("start", "policy")}
    numbers = {theirs: START, ours: 1} | {name: place for place, name in enumerate(policies)}
    rewards = rewards_of(measured)
    judge = answers.judge_of(rewards)
    replies = replies_of(run.samples, ours, theirs)
    learns = any("reward" in record for record in metrics if record["stage"].endswith("policy"))
    lead = f"Measured on {measured['on']}." if "on" in measured else ""
    worth = run.summary.get("worth", "")
    sections = (
        Section("Before and after", lead, _policies(measured, policies, numbers)),
        _over_optimisation(run, ours),
        Section("Learning curves", "", plots=_curves(metrics, ours)),
        Section("Single replies", "", plots=distributions(replies, numbers, rewards), legend=list(replies)),
        Section(
            "Samples",
            f"The first reply to each prompt, first where {judge} disagrees most." if judge else "",
            samples=side_by_side(replies, judge),
        ),
        reward_model.of_stage(stages.get("reward", {}), agreement(replies, numbers, answers.LEARNED, judge)),
        Section("Settings", "", [_stages(stages)] if stages else (), listings=settings(run)),
        Section("How to reproduce", "", listings=_reproduce(run)),
    )
    return Document(
        "run",
        run.path.resolve().name,
        [
            *answers.of_run(
                stages, alarms, ours=ours, theirs=theirs if theirs == "SFT" else "the start", learns_from=learns
            ),
            *([worth] if worth else []),
        ],
        _figures(measured, judge, theirs),
        [(f"{said['stage']}, before step {said['step']:.0f}", said["text"]) for said in alarms],
        sections,
        numbers if policies else {},
    )


def _over_optimisation(run: Run, ours: str) -> Section:
    """Gold along training, where it was measured."""
    if not any("gold_reward" in record for record in run.metrics):
        return Section("Over-optimisation")
    from alignkit_report.overopt.findings import of_run  # imports statsmodels

    found = {key: {ours: next(iter(of.values()))} for key, of in of_run(run).items() if of and isinstance(of, dict)}
    return overopt.section(found, {ours: 1})


def names_of(stages: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[str, str]:
    """What the trained policy and its start are called: PPO, SFT."""
    plugin = str(recipe.get("optimizer", {}).get("plugin", "")).rpartition(":")[2]
    ours = plugin.upper() if len(plugin) <= SHORTENED else plugin
    return ours or "the policy", "SFT" if "sft" in stages else "start"


def recipe_of(run: Run) -> dict[str, Any]:
    """The tables of its recipe; empty if it has none."""
    path = run.path / "recipe.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _named(name: str, ours: str, theirs: str) -> str:
    """`policy, best of 4` as `PPO, best of 4`."""
    source, comma, more = name.partition(",")
    return {"start": theirs, "policy": ours}.get(source, source) + comma + more


def rewards_of(measured: Mapping[str, Any]) -> list[str]:
    """The rewards that an evaluation measured, the one that says most first."""
    names = [name.split("/")[1] for name in measured if name.startswith("win_rate/") and name.count("/") == 1]
    judge = answers.judge_of(names)
    return sorted(names, key=lambda name: name != judge)


def replies_of(samples: Sequence[Group], ours: str, theirs: str) -> dict[str, list[Group]]:
    """A run's samples by the policy that gave them, the start first."""
    found: dict[str, list[Group]] = defaultdict(list)
    for group in samples:
        found[_named(group.source, ours, theirs)].append(group)
    return dict(found)


def _policies(measured: Mapping[str, Any], policies: Mapping[str, str], numbers: Mapping[str, int]) -> list[Table]:
    """A row for each policy: win rates first, then every figure that was measured."""
    rewards = rewards_of(measured)
    rows = {
        name: {**_win_rates(measured, source, rewards), **figures_of(measured[source])}
        for name, source in policies.items()
    }
    main = [*(f"win_rate/{reward}" for reward in rewards), *rewards, *MAIN]
    return tables("policies", rows, main, numbers)


def _win_rates(measured: Mapping[str, Any], source: str, rewards: Sequence[str]) -> dict[str, Any]:
    """Over the start."""
    end = {"start": "/start", "policy": ""}.get(source, f"/{source}")
    found = {name: measured.get(name + end) for name in (f"win_rate/{reward}" for reward in rewards)}
    return {name: value for name, value in found.items() if value}


def _figures(measured: Mapping[str, Any], judge: str, theirs: str) -> list[KeyFigure]:
    """The few numbers under the answer."""
    if not judge:
        return []
    share, before, after = measured[f"win_rate/{judge}"], measured.get("start", {}), measured.get("policy", {})
    found = [
        KeyFigure("Preferred", percent(share["value"]), interval(share, 0, as_percent=True), f"to {theirs}, by {judge}")
    ]
    for name, title, note in (
        *((reward, reward.capitalize(), "") for reward in rewards_of(measured)),
        ("kl", "KL", "nats per reply"),
        ("tokens", "Length", "tokens"),
    ):
        old, new = before.get(name), after.get(name)
        if new:
            digits = digits_of([new])
            was = f"from {number(old['value'], digits)}" if old and name != "kl" else ""
            said = ", ".join(filter(None, (note, was)))
            found.append(KeyFigure(title, number(new["value"], digits), interval(new, digits), said))
    return found


def _curves(metrics: Sequence[Mapping[str, Any]], ours: str) -> list[Any]:
    """The last alignment stage's curves, then those of the stages before."""
    stages = list(dict.fromkeys(record["stage"] for record in metrics))
    aligned = [stage for stage in stages if stage.endswith("policy")]
    found = []
    for stage in [*reversed(aligned), *(stage for stage in reversed(stages) if stage not in aligned)]:
        name = {"policy": ours, "reward": "Reward model", "sft": "SFT"}.get(stage, stage)
        found += series.curves({name: [metrics]}, {name: 1}, stage, f"{name}: ")
    return found


def _stages(stages: Mapping[str, Any]) -> Table:
    """How long every stage took."""
    rows = [
        [name, said.get("steps"), said.get("tokens"), duration(said["seconds"]) if "seconds" in said else None]
        for name, said in stages.items()
    ]
    columns = [Column("stage"), Column("steps", NUMBER), Column("tokens", NUMBER), Column("time")]
    return Table("stages", columns, rows)


def state_of(run: Run) -> dict[str, Any]:
    """run.json; empty where there is none."""
    path = run.path / "run.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def settings(run: Run) -> list[Listing]:
    versions = state_of(run).get("versions", {})
    python = state_of(run).get("python")
    known = ([f"python {python}"] if python else []) + [f"{name} {version}" for name, version in versions.items()]
    listings = [Listing("Versions", "\n".join(known))] if known else []
    path = run.path / "recipe.toml"
    if path.is_file():
        listings.append(Listing("Recipe, with every option", path.read_text(encoding="utf-8"), folded=True))
    return listings


def _reproduce(run: Run) -> list[Listing]:
    state = state_of(run)
    version, argv = state.get("versions", {}).get("alignkit"), state.get("argv")
    if not argv:
        return []
    commands = [f'pip install "alignkit=={version}"'] if version else []
    commands += [f"alignkit run {shlex.quote(str(run.path / 'recipe.toml'))} --out again"]
    return [Listing("Again", "\n".join(commands)), Listing("As it was typed", shlex.join(["alignkit", *argv]))]
