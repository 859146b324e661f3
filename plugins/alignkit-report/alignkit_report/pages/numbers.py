"""Figures as people read them: as many digits as their interval supports, and no zero with a minus sign."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, isfinite, log10
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_DIGITS = 4
SMALL = 10
"""Figures below it have a digit after the point, however wide their interval is."""
BIGGEST_SECONDS, BIGGEST_MINUTES = 120, 120 * 60


def is_estimate(value: Any) -> bool:
    """Whether it is a figure with its interval."""
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def is_number(value: Any) -> bool:
    """Whether it is a finite number, with or without an interval."""
    found = value.get("value") if isinstance(value, Mapping) else value
    return isinstance(found, int | float) and not isinstance(found, bool) and isfinite(found)


def point(value: Any) -> float:
    """The number itself, without its interval."""
    return float(value["value"] if isinstance(value, Mapping) else value) + 0.0


def digits_of(values: Iterable[Any]) -> int:
    """Digits after the point for a column: the first of the interval's half width, or three of the largest number."""
    found = [value for value in values if is_number(value)]
    halves = [(value["high"] - value["low"]) / 2 for value in found if is_estimate(value)]
    if wide := [half for half in halves if half > 0]:
        least = 1 if max(abs(point(value)) for value in found) < SMALL else 0
        return max(least, _bounded(-floor(log10(median(wide)))))
    if all(point(value) == int(point(value)) for value in found):
        return 0
    return _bounded(2 - floor(log10(max(abs(point(value)) for value in found))))


def _bounded(digits: int) -> int:
    return min(max(digits, 0), MOST_DIGITS)


def number(value: float, digits: int) -> str:
    """`1,234.5`; what rounds to zero has no sign."""
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if not any(letter in "123456789" for letter in text) else text.replace("-", "\u2212")


def short(value: float) -> str:
    """A single figure: at most two digits after the point, none of a whole number."""
    return number(value, min(digits_of([value]), 2))


def percent(value: float) -> str:
    """`85%`."""
    return f"{number(100 * value, 0)}%"


def interval(value: Any, digits: int, *, as_percent: bool = False) -> str:
    """`[0.81, 0.87]`; of percents `[81, 87]`. Empty where there is none or it says nothing."""
    if not is_estimate(value) or value["low"] == value["high"]:
        return ""
    low, high = (100 * end for end in within_0_and_1(value)) if as_percent else (value["low"], value["high"])
    return f"[{number(low, digits)}, {number(high, digits)}]"


def within_0_and_1(share: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a share: what Student's t puts below 0 or above 1 is impossible."""
    return max(0.0, share["low"]), min(1.0, share["high"])


def duration(seconds: float) -> str:
    """`95 s`, `12 min`, `3.2 h`."""
    if seconds < BIGGEST_SECONDS:
        return f"{number(seconds, 0 if seconds >= 10 else 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < BIGGEST_MINUTES else f"{seconds / 3600:.1f} h"
