"""report.html: what a run did and how it turned out, as one self-contained file; and what a notebook shows of it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from alignkit.commands import FIGURES
from alignkit_report.measures import flat
from alignkit_report.page import TEMPLATES, render, write_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from alignkit import Group, Run

SHOWN_SAMPLES = 5


def write_report(run: Run) -> Path:
    """Writes `report.html` into the run's directory, from its files and the summaries of its stages."""
    summary, reward = run.summary, run.stages.get("reward", {})
    return write_page(
        run.path / "report.html",
        TEMPLATES / "report.html",
        title="alignkit run",
        name=run.path.resolve().name,
        worth=summary.get("worth"),
        reward=reward if "shorter_wins" in reward else None,
        alarms=[(said["stage"], int(said["step"]), said["text"]) for said in run.alarms],
        samples=_samples(run.samples),
        curves=_curves(run.metrics),
        recipe=(run.path / "recipe.toml").read_text(encoding="utf-8"),
        **_tables(run.stages),
    )


def notebook_html(run: Run) -> str:
    """The run as a notebook shows it."""
    return render(TEMPLATES / "run.html", path=run.path, **_tables(run.stages))


def _tables(stages: Mapping[str, Any]) -> dict[str, Any]:
    """The stages, and the policies with what they were measured on."""
    figures = stages.get("eval", {})
    return {
        "stages": [(name, said.get("seconds", ""), said.get("steps", "")) for name, said in stages.items()],
        "on": figures.get("on", "prompts of unknown history"),
        "policies": _policies(figures) if "policy" in figures else None,
    }


def _policies(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The policies before and after, and best of n of each, as columns; then the win rates."""
    columns = {
        name.replace("start", "before").replace("policy", "after"): flat(said)
        for name, said in figures.items()
        if name.partition(",")[0] in ("start", "policy")
    }
    names = dict.fromkeys(name for title, said in columns.items() if title != "before" for name in said)
    rows = [(name, *(said.get(name, "") for said in columns.values())) for name in names]
    rows += [(name, "", value) for name, value in figures.items() if name.startswith("win_rate")]
    return {"head": ("", *columns), "rows": rows}


def _samples(groups: Iterable[Group]) -> list[Sequence[str]]:
    """(prompt, response before, response after) of the first prompts."""
    by_prompt: dict[str, dict[str, Group]] = defaultdict(dict)
    for group in groups:
        by_prompt[group.prompt.identity][group.source] = group
    pairs = [(by_source["start"], by_source["policy"]) for by_source in list(by_prompt.values())[:SHOWN_SAMPLES]]
    return [(before.prompt.plain, before.responses[0], after.responses[0]) for before, after in pairs]


def _curves(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(stage, name) -> (step, value) of every figure that matters."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        for name in FIGURES:
            if name in record:
                curves[record["stage"], name].append((record["step"], record[name]))
    return curves
