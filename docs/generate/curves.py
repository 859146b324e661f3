"""What the algorithms measured along training: small pictures from comparison.json, and tables of a few points.

The drawings are the reports' own, with their colours, light and dark as the reader's system or the site is.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from alignkit_report.pages import plain
from alignkit_report.pages.document import Lines
from alignkit_report.pages.numbers import number

from docs.generate.text import INPUTS, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FOLDER = "reference/algorithms"
PICTURES = f"{FOLDER}/curves"
TITLES = {
    "gold_reward": "gold reward",
    "reward": "learned reward",
    "kl": "KL to the SFT policy, nats a reply",
    "accuracy": "accuracy",
    "margin": "margin",
    "reference_kl": "KL from the SFT policy, nats a reply",
    "loss": "loss, nats a token",
}
"""Figure of a curve -> what it is, and its unit."""
CAPTIONS = {
    "kl": "Each batch of rollouts, four replies to each of 48 prompts, before the policy learns from it. What it is "
    "trained for is the learned reward; gold is the true one, which no model sees.",
    "margin": "Rankings before the policy learns from them, each seen once. Accuracy is the share of pairs whose "
    "implicit rewards stand as the annotators ranked them, margin the lead of the better reply, on a scale of each "
    "algorithm's own.",
    "accuracy": "Replies before the policy learns from them, each seen once. Accuracy is the share whose implicit "
    "reward is above the baseline if they are desirable, and not if they aren't.",
    "loss": "Demonstrations before the policy learns from them, each seen once.",
}
"""Figure -> what the curves are of an algorithm that has it, unless it has one above."""
OF_KL = " The replies are the SFT policy's, so the KL is that from it to the trained one."
"""Stands after it where there is such a KL."""
OF_REWARDS = (
    "Batches of rankings before the reward model learns from them; after a quarter it has seen them all. Accuracy is "
    "the share of pairs whose scores stand as the annotators ranked them, margin the lead of the better reply. At the "
    "end it orders {accuracy:.1%} of the pairs of {prompts} unseen prompts so."
)
SHARES = {"start": 0.0, "a quarter": 0.25, "half": 0.5, "end": 1.0}
"""Points of a table, as shares of the training."""
WIDTH, LEGEND, SAMPLE, LETTER = 216, 18, 22, 7
"""Pixels: of the curves, of the line of names below them, of a name's piece of line, and of a letter."""
VARIABLE = re.compile(r"--(muted|rule|c1|c2): (#\w+);")
RULES = "text{fill:var(--muted);font:11.5px system-ui,sans-serif}line{stroke:var(--rule)}polyline{stroke-width:1.8}"


@cache
def measured() -> dict[str, Any]:
    """The demo's comparison, as `docs.generate.measured` wrote it."""
    found: dict[str, Any] = json.loads((INPUTS / "comparison.json").read_text(encoding="utf-8"))
    return found


def page_name(algorithm: str) -> str:
    """An algorithm's name in the names of files."""
    return algorithm.replace("+", "-plus")


def pictures(beside: Mapping[str, str]) -> dict[str, str]:
    """Path under docs/ -> SVG, for every algorithm with curves.

    Args:
        beside: algorithm -> another one, whose curves are drawn with its own.
    """
    return {
        f"{PICTURES}/{_file(name, figure)}": _picture(name, figure, beside.get(name, ""))
        for name, curve in measured()["curves"].items()
        for figure in curve["figures"]
    }


def parts(name: str, other: str) -> Iterator[str]:
    """The pictures of an algorithm, and their table; nothing if it has no curves."""
    curve = measured()["curves"].get(name)
    if curve is None:
        return
    text = next(text for figure, text in CAPTIONS.items() if figure in curve["figures"])
    text = OF_REWARDS.format(**curve["unseen"]) if "unseen" in curve else text
    yield f"{text}{OF_KL if 'reference_kl' in curve['figures'] else ''}\n"
    yield "\n".join(f"![{_said(name, one, other)}](curves/{_file(name, one)})" for one in curve["figures"]) + "\n"
    columns = [(one, who) for one in curve["figures"] for who in _drawn(name, one, other)]
    head = ["", curve["along"], *(f"{TITLES[one].partition(',')[0]}, {who}" for one, who in columns)]
    rows = [
        [said, f"{_at(curve['x'], share):.0f}", *(_number(who, one, share) for one, who in columns)]
        for said, share in SHARES.items()
    ]
    yield from table(head, rows)


def _file(name: str, figure: str) -> str:
    return f"{page_name(name)}-{figure.replace('_', '-')}.svg"


def _drawn(name: str, figure: str, other: str) -> list[str]:
    """The algorithms in a picture: its own, and the other one if that has the same figure of the same training."""
    curves = measured()["curves"]
    own, others = curves[name], curves.get(other, {})
    return [name, other] if own["along"] == others.get("along") and figure in others["figures"] else [name]


def _at(values: Sequence[float], share: float) -> float:
    return values[round(share * (len(values) - 1))]


def _number(name: str, figure: str, share: float) -> str:
    return number(_at(measured()["curves"][name]["figures"][figure], share), 2)


def _said(name: str, figure: str, other: str) -> str:
    """A picture in words."""
    ends = [f"{who} from {_number(who, figure, 0)} to {_number(who, figure, 1)}" for who in _drawn(name, figure, other)]
    return f"{TITLES[figure].partition(',')[0]} along training: {', '.join(ends)}"


def _picture(name: str, figure: str, other: str) -> str:
    curves, names = measured()["curves"], _drawn(name, figure, other)
    points = {
        who: [(x, y, y, y) for x, y in zip(curves[who]["x"], curves[who]["figures"][figure], strict=True)]
        for who in names
    }
    lines = Lines(TITLES[figure], points, {who: place for place, who in enumerate(names, start=1)})
    width, height = plain.size(WIDTH)
    size = f'width="{width}" height="{height + LEGEND}" viewBox="0 0 {width} {height + LEGEND}"'
    drawn = plain.inside(lines, along=curves[name]["along"], width=WIDTH) + _legend(names, height)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>'
    return f"{head}\n<title>{_said(name, figure, other)}</title>\n<style>{_style()}</style>\n{drawn}\n</svg>\n"


def _legend(names: Sequence[str], top: int) -> str:
    """The names below the curves, each after a piece of its line."""
    found, x = [], plain.LEFT
    for place, name in enumerate(names, start=1):
        line = f'points="{x},{top + 7} {x + SAMPLE},{top + 7}" stroke="var(--c{place})" {plain.dashes(place)}'
        found += [f'<polyline {line}/><text x="{x + SAMPLE + 5}" y="{top + 11}">{name}</text>']
        x += SAMPLE + 5 + LETTER * len(name) + 14
    return "".join(found)


@cache
def _style() -> str:
    """The reports' colours: in their style sheet the light ones come first."""
    sheet = (files("alignkit_report") / "templates" / "style.css").read_text(encoding="utf-8")
    light, _, dark = sheet.partition("prefers-color-scheme: dark")
    colours = ["".join(f"--{name}:{value};" for name, value in VARIABLE.findall(part)) for part in (light, dark)]
    return f"svg{{{colours[0]}}}@media(prefers-color-scheme:dark){{svg{{{colours[1]}}}}}{RULES}"
