"""Near-duplicate texts: equal except for case, space and punctuation, or similar in their runs of words.

The likeness of two texts is the exact Jaccard index of their sets of word runs (Broder 1997, On the resemblance and
containment of documents). Imports no torch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

RUN = 3
"""Words per run; a shorter text is one run."""
NEAR = 0.8
"""Likeness from which two texts are near-duplicates."""


def normalized(text: str) -> str:
    """The words in lower case, without punctuation; a text without words is only stripped."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words) if words else text.strip()


def runs(text: str) -> frozenset[str]:
    """The runs of RUN words in a text."""
    words = normalized(text).split()
    return frozenset(" ".join(words[start : start + RUN]) for start in range(max(1, len(words) - RUN + 1)))


def likeness(one: str, other: str) -> float:
    """Jaccard index of the runs of two texts, 0 to 1."""
    left, right = runs(one), runs(other)
    return len(left & right) / len(left | right)


def distinct(texts: Iterable[str], near: float = NEAR) -> list[int]:
    """Indices of the texts to keep: those that are no near-duplicate of a text kept before."""
    kept: list[tuple[int, str]] = []
    for index, text in enumerate(texts):
        if not any(likeness(text, before) >= near for _, before in kept):
            kept.append((index, text))
    return [index for index, _ in kept]
