"""Looks texts up among many others, the same or nearly so. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from alignkit.preferences import NEAR, likeness, normalized, runs

if TYPE_CHECKING:
    from collections.abc import Iterable

COMMON = 200
"""A run of words in more texts than this is taken for a template and ignored."""


class SimilarTexts:
    """An index of texts, to look up similar ones."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = {normalized(text) for text in texts}
        self._having: dict[str, list[str]] = defaultdict(list)
        for text in sorted(self._texts):
            for run in runs(text):
                self._having[run].append(text)

    def match(self, text: str) -> float:
        """Likeness of the most similar text, 1.0 if equal; 0.0 if below NEAR."""
        if normalized(text) in self._texts:
            return 1.0
        mine = runs(text)
        shared: Counter[str] = Counter()
        for run in mine:
            having = self._having.get(run, ())
            if len(having) <= COMMON:
                shared.update(having)
        best = max((likeness(text, other) for other, count in shared.items() if count >= NEAR * len(mine)), default=0.0)
        return best if best >= NEAR else 0.0
