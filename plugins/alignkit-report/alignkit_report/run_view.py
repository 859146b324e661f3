"""What is known of a run while it runs, for a terminal."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from alignkit import visible
from alignkit.commands import FIGURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from alignkit import Run

BARS = "▁▂▃▄▅▆▇█"
CURVE, TEXT, RESPONSES = 40, 300, 4
"""Columns of a curve; characters of a text; responses that are shown."""
SILENT = 60.0
"""Seconds without a step before the view says so."""


def view(run: Run, now: float) -> RenderableType:
    """What is known of a run at a time, in seconds since the epoch."""
    steps, events = run.metrics, run.events
    parts: list[RenderableType] = [Text(visible(line)) for line in _stages(run)]
    if not steps:
        return Group(*parts, Text("no step is done yet"))
    stage = steps[-1]["stage"]
    own = [record for record in steps if record["stage"] == stage]
    planned = [event["planned"] for event in events if event["stage"] == stage and "planned" in event]
    parts.append(Text(visible(_progress(own, planned[-1] if planned else None, now)), style="bold"))
    parts.append(_curves(own))
    parts += [
        Text(visible(f"alarm, step {said['step']:.0f}: {said['text']}"), style="red")
        for said in events
        if "alarm" in said
    ]
    samples = [event for event in events if event["stage"] == stage and "samples" in event]
    return Group(*parts, *(_sample(samples[-1]) if samples else ()))


def _stages(run: Run) -> list[str]:
    """A line for each stage that is done."""
    stages = run.stages
    lines = [f"{name}: done in {said.get('seconds', 0):.0f} s" for name, said in stages.items()]
    wins = [(name, said) for name, said in stages.get("eval", {}).items() if name.startswith("win_rate")]
    for name, said in wins:
        lines.append(f"{name} {said['value']:.0%} [{100 * said['low']:.0f}, {100 * said['high']:.0f}]")
    return [str(run.path), *lines]


def _progress(own: Sequence[Mapping[str, Any]], planned: float | None, now: float) -> str:
    """`policy: step 12 of 40, about 3 min left, last step 2 s ago`."""
    last = own[-1]
    said = [f"{last['stage']}: step {last['step']:.0f}" + (f" of {planned:.0f}" if planned else "")]
    left = max((planned or 0) - last["step"], 0)
    if left and len(own) > 1:
        each = (last["time"] - own[0]["time"]) / (len(own) - 1)
        said.append(f"about {_duration(left * each)} left")
    silent = now - last["time"]
    if left and silent > SILENT:
        said.append(f"nothing new for {_duration(silent)}")
    return ", ".join(said)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _curves(own: Sequence[Mapping[str, Any]]) -> Table:
    """Of each figure that matters: its last value, its curve, and the range of the curve."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "now", "over all steps", "lowest", "highest"):
        table.add_column(heading, justify="left" if heading in ("", "over all steps") else "right")
    for name in FIGURES:
        values = [float(record[name]) for record in own if name in record]
        if values:
            now, low, high = (f"{value + 0.0:.4g}" for value in (values[-1], min(values), max(values)))
            table.add_row(name, now, sparkline(values, CURVE), low, high)
    return table


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars of eight heights between the lowest and the highest; of more than `width`, means of neighbours."""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1)) if span else 0] for mean in means)


def _sample(record: Mapping[str, Any]) -> list[RenderableType]:
    """A prompt and responses to it that the policy learns from."""
    from alignkit import Group as Records

    group = Records.from_json(record["samples"][0])
    lines = [f"sampled before step {record['step']:.0f}, reward and response:", group.prompt.plain[-TEXT:]]
    scored = list(zip(group.scores or (), group.responses, strict=False))[:RESPONSES]
    lines += [f"{'abstained' if score is None else f'{score:9.3g}'}  {response[:TEXT]}" for score, response in scored]
    return [Text(""), *(Text(visible(line)) for line in lines)]
