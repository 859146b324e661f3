"""What is measured beside rewards, KL and length: pure functions of texts, scores and log-probabilities.

A figure of one run is a value per prompt, [P], whose mean is the figure and whose spread says how sure it is. So one
kind of interval and of test (`compare.statistics`) holds for all of them, over seeds too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's figures with its measures among them."""
    return {**{name: said for name, said in figures.items() if name != "measures"}, **figures.get("measures", {})}
