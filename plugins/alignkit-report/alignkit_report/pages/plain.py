"""Learning curves as SVG without a plotting library: Altair and vl-convert take two seconds to start, too long for the
page that every run writes at its end."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from alignkit import visible
from alignkit_report.pages.colours import DASHES, colour_of, mark_of
from alignkit_report.pages.numbers import number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alignkit_report.pages.document import Lines

LEFT, TOP, WIDTH, HEIGHT = 46, 22, 276, 150
"""The area of the curves within the drawing, in pixels."""
BELOW, BESIDE = 38, 8
ROUNDING = 1e-9


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart, and how they are written."""
    rough = (high - low) / most
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - ROUNDING))
    digits = max(0, -floor(log10(step) + ROUNDING))
    first, last = ceil(low / step - ROUNDING), floor(high / step + ROUNDING)
    return [(place * step, number(place * step, digits)) for place in range(first, last + 1)]


@dataclass(frozen=True)
class Area:
    """What a drawing shows, and where it stands in it."""

    left: float
    right: float
    low: float
    high: float
    width: int = WIDTH

    def x(self, value: float) -> float:
        return LEFT + self.width * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return TOP + HEIGHT * (self.high - value) / (self.high - self.low)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """Points as an SVG's attribute."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def curves(lines: Lines) -> str:
    """The curves as an SVG element, in the colours of the page."""
    width, height = size(WIDTH)
    head = f'<svg class="plain" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return f"{head}{inside(lines)}</svg>"


def size(width: int) -> tuple[int, int]:
    """Width and height of a drawing, in pixels.

    Args:
        width: of the area of the curves.
    """
    return LEFT + width + BESIDE, TOP + HEIGHT + BELOW


def inside(lines: Lines, *, along: str = "step", width: int = WIDTH) -> str:
    """The elements of a drawing, which name colours as the variables `--c1`, `--c2` and so on.

    Args:
        along: title of the horizontal axis.
        width: of the area of the curves.
    """
    every = [point for points in lines.points.values() for point in points]
    low, high = min(point[2] for point in every), max(point[3] for point in every)
    room = 0.0 if low < high else 0.5
    area = Area(min(p[0] for p in every), max(p[0] for p in every), low - room, high + room, width)
    parts = _axes(area, lines.unit, along)
    for name, points in lines.points.items():
        policy = lines.numbers[name]
        colour = f"var(--c{colour_of(policy)})"
        if any(least < most for _, _, least, most in points):
            band = [(x, least) for x, _, least, _ in points] + [(x, most) for x, _, _, most in reversed(points)]
            parts.append(f'<polygon points="{area.path(band)}" fill="{colour}" opacity=".16"/>')
        drawn = area.path((x, mean) for x, mean, _, _ in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" {dashes(policy)}/>')
    return "".join(parts)


def dashes(policy: int) -> str:
    """The dashes of a policy's line, by its number, as an SVG's attribute."""
    dash = DASHES[mark_of(policy)]
    return f'stroke-dasharray="{" ".join(map(str, dash)) if dash[1] else "none"}"'


def _axes(area: Area, unit: str, along: str) -> list[str]:
    parts = [f'<text x="0" y="11">{escape(visible(unit))}</text>']
    for value, said in ticks(area.low, area.high):
        y = area.y(value)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + area.width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said}</text>')
    for value, said in ticks(area.left, area.right, 4):
        parts.append(f'<text x="{area.x(value):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{said}</text>')
    middle, bottom = LEFT + area.width // 2, TOP + HEIGHT + BELOW - 5
    return [*parts, f'<text x="{middle}" y="{bottom}" text-anchor="middle">{escape(visible(along))}</text>']
