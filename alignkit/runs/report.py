"""report.html: what a run did and how it turned out, as one self-contained file."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError, describe_error
from alignkit.records import read_groups
from alignkit.runs.page import TEMPLATES, write_page
from alignkit.runs.reporting import FIGURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.records import Group

SHOWN_SAMPLES = 5


def write_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes `folder/report.html` from the run's files and the summaries of its stages."""
    reward, figures = summary.get("reward", {}), summary.get("eval", {})
    return write_page(
        folder / "report.html",
        TEMPLATES / "report.html",
        title="alignkit run",
        name=folder.resolve().name,
        stages=[(name, said.get("seconds", ""), said.get("steps", "")) for name, said in summary.items()],
        worth=worth_of_labels(summary),
        reward=reward if "shorter_wins" in reward else None,
        on=figures.get("on", "prompts of unknown history"),
        policies=policies_table(figures) if "policy" in figures else None,
        alarms=[(said["stage"], int(said["step"]), said["text"]) for said in read_alarms(folder / "metrics.jsonl")],
        samples=_samples(folder / "samples.jsonl"),
        curves=_curves(folder / "metrics.jsonl"),
        recipe=(folder / "recipe.toml").read_text(encoding="utf-8"),
    )


def read_state(folder: Path) -> dict[str, Any]:
    """The run.json of a run directory.

    Raises:
        InputError: it is damaged.
    """
    path = folder / "run.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(said, dict) for said in state["stages"].values()):
            raise TypeError("a stage is no table")
        return {"digest": "", **state}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"is damaged ({describe_error(error)}); the models and checkpoints beside it are untouched",
            where=str(path),
            fix="restore it from a copy, or start again with another --out or --overwrite",
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of the steps in a metrics.jsonl."""
    return [record for record in read_records(path) if "alarm" not in record]


def read_alarms(path: Path) -> list[dict[str, Any]]:
    """The alarms in a metrics.jsonl."""
    return [record for record in read_records(path) if "alarm" in record]


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics.jsonl, without lines that are none, such as a truncated last one."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            records += [record] if {"stage", "step"} <= record.keys() else []
        except (ValueError, AttributeError):
            continue
    return records


def worth_of_labels(summary: Mapping[str, Any]) -> str:
    """How far to trust the labels of each stage, in its source's words, and what the reward model's figure means."""
    said = [f"{name}: {stage['worth']}" for name, stage in summary.items() if stage.get("worth")]
    figure = summary.get("reward", {}).get("agreement_with_ai")
    if figure:
        said.append(f"The reward model agrees with the AI on {figure['value']:.1%} of its pairs, which is no accuracy")
    return ". ".join(said)


def policies_table(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The policies before and after, and best of n of each, as columns; then the win rates."""
    columns = {
        name.replace("start", "before").replace("policy", "after"): said
        for name, said in figures.items()
        if name.partition(",")[0] in ("start", "policy")
    }
    names = dict.fromkeys(name for title, said in columns.items() if title != "before" for name in said)
    rows = [(name, *(said.get(name, "") for said in columns.values())) for name in names]
    rows += [(name, "", value) for name, value in figures.items() if name.startswith("win_rate")]
    return {"head": ("", *columns), "rows": rows}


def _samples(path: Path) -> list[Sequence[str]]:
    """(prompt, response before, response after) of the first prompts."""
    groups: dict[str, dict[str, Group]] = defaultdict(dict)
    for group in read_groups(path) if path.exists() else ():
        groups[group.prompt.identity][group.source] = group
    pairs = [(by_source["start"], by_source["policy"]) for by_source in list(groups.values())[:SHOWN_SAMPLES]]
    return [(before.prompt.plain, before.responses[0], after.responses[0]) for before, after in pairs]


def _curves(path: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(stage, name) -> (step, value) of every figure that matters."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for record in read_metrics(path):
        for name in FIGURES:
            if name in record:
                curves[record["stage"], name].append((record["step"], record[name]))
    return curves
