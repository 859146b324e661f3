"""report.html: what a run did and what came of it, as one file that needs nothing from the network."""

from __future__ import annotations

import json
from collections import defaultdict
from html import escape
from typing import TYPE_CHECKING, Any

from alignkit.records import read_groups
from alignkit.runs.reporting import FIGURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from alignkit.records import Group

WIDTH, HEIGHT = 320, 110
SHOWN_SAMPLES = 5
STYLE = """
:root { color-scheme: light dark; --line: #2563eb; --soft: #8883; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { padding: .3rem .8rem; border-bottom: 1px solid var(--soft); text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; } figcaption { font-size: .85rem; }
polyline { fill: none; stroke: var(--line); stroke-width: 1.5; } svg { border: 1px solid var(--soft); }
pre { overflow-x: auto; border: 1px solid var(--soft); padding: .8rem; font-size: .85rem; }
"""


def write_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes `folder/report.html` from the run's files and the summaries of its stages."""
    parts = [
        f"<h1>{escape(folder.resolve().name)}</h1>",
        table(
            ("stage", "seconds", "steps"), ((n, s.get("seconds", ""), s.get("steps", "")) for n, s in summary.items())
        ),
        _reward_section(summary.get("reward", {})),
        _eval_section(summary.get("eval", {})),
        _samples_section(folder / "samples.jsonl"),
        _curves_section(folder / "metrics.jsonl"),
        f"<h2>Recipe</h2><pre>{escape((folder / 'recipe.toml').read_text(encoding='utf-8'))}</pre>",
    ]
    path = folder / "report.html"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>alignkit run</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    path.write_text(head + "\n".join(part for part in parts if part) + "</html>\n", encoding="utf-8")
    return path


def _reward_section(reward: Mapping[str, Any]) -> str:
    if "accuracy" not in reward:
        return ""
    where = "held-out prompts" if reward["held_out"] else "the prompts it was trained on"
    rows = [("reward model", _cell(reward["accuracy"])), ("the shorter response wins", _cell(reward["shorter_wins"]))]
    return f"<h2>Reward model</h2><p>Share of ranked pairs ordered as in the preferences, on {where}.</p>" + table(
        ("", "accuracy [95% interval]"), rows
    )


def _eval_section(figures: Mapping[str, Any]) -> str:
    if "policy" not in figures:
        return ""
    choosing = [name for name in figures if ", best of " in name]
    columns = [figures[name] for name in ("start", "policy", *choosing)]
    names = dict.fromkeys(name for column in columns[1:] for name in column)
    rows = [(name, *(_cell(column.get(name, "")) for column in columns)) for name in names]
    rows += [(name, "", _cell(value)) for name, value in figures.items() if name.startswith("win_rate")]
    titles = [name.replace("start", "before").replace("policy", "after") for name in choosing]
    return f"<h2>On {figures['prompts']} unseen prompts</h2>" + table(("", "before", "after", *titles), rows)


def _samples_section(path: Path) -> str:
    if not path.exists():
        return ""
    groups: dict[str, dict[str, Group]] = defaultdict(dict)
    for group in read_groups(path):
        groups[group.prompt.plain][group.source] = group
    rows = [
        (prompt, by_source["start"].responses[0], by_source["policy"].responses[0])
        for prompt, by_source in list(groups.items())[:SHOWN_SAMPLES]
    ]
    return "<h2>Samples</h2>" + table(("prompt", "before", "after"), rows)


def _curves_section(path: Path) -> str:
    if not path.exists():
        return ""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name in FIGURES:
            if name in record:
                curves[record["stage"], name].append((record["step"], record[name]))
    return "<h2>Training</h2>" + "".join(_curve(f"{s}: {name}", points) for (s, name), points in curves.items())


def _curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def place(step: float, value: float) -> str:
        x = WIDTH * (step - first) / ((last - first) or 1)
        y = HEIGHT - 4 - (HEIGHT - 8) * (value - low) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in points)
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<polyline points="{line}"/></svg><figcaption>{escape(title)}: {values[0]:.4g} to {values[-1]:.4g} '
        f"(range {low:.4g} to {high:.4g})</figcaption></figure>"
    )


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return value


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; numbers stand on the right."""

    def cell(value: Any) -> str:
        kind = ' class="number"' if isinstance(value, int | float) else ""
        return f"<td{kind}>{escape(str(value))}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr>{body}</table>"
