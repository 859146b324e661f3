"""Shares with Wilson's interval (1927, Probable inference), and how often AIs agree with people. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import TYPE_CHECKING, Any

from alignkit.preferences.annotations import TIE, stored_annotations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from alignkit.records import Group

Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Share:
    """A share of `n` cases with its 95% Wilson interval; `value` is None without cases."""

    hits: float
    n: int

    @property
    def value(self) -> float | None:
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); (0, 1) without cases."""
        if not self.n:
            return 0.0, 1.0
        share, spread = self.hits / self.n, Z95**2 / self.n
        middle = (share + spread / 2) / (1 + spread)
        half = sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any] | None:
        """value, low, high and n; None without cases."""
        if self.value is None:
            return None
        low, high = self.interval
        return {"value": round(self.value, 4), "low": round(low, 4), "high": round(high, 4), "n": self.n}

    def __str__(self) -> str:
        """`78% of 100 [69, 85]`."""
        low, high = (round(100 * bound) for bound in self.interval)
        return "no cases" if self.value is None else f"{self.value:.0%} of {self.n} [{low}, {high}]"


def most_frequent(values: Iterable[int | None]) -> int | None:
    """The most frequent verdict; None if there is none, or a tie."""
    ranked = Counter(value for value in values if value is not None).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def panel_verdict(looks: Iterable[Collection[int | None]]) -> int | None:
    """The verdict of one or several AIs, from each one's verdicts on a pair in one order or both.

    An AI whose verdicts differ calls a tie; one that abstained in an order abstains. Then the most frequent verdict
    counts, and a tie if two are equally frequent.
    """
    each = [None if None in own else own[0] if len(set(own)) == 1 else TIE for own in map(list, looks) if own]
    known = [verdict for verdict in each if verdict is not None]
    found = most_frequent(known)
    return TIE if known and found is None else found


def random_person(verdict: int | None, people: Sequence[int]) -> float:
    """The chance that a random one of these people gives this verdict; an abstention is nobody's verdict."""
    return people.count(verdict) / len(people) if verdict is not None else 0.0


def agreement_with_people(groups: Iterable[Group]) -> Share:
    """How often AIs give the verdict of a random person, over the pairs of responses that both judged."""
    hits, pairs = 0.0, 0
    for group in groups:
        said = stored_annotations(group)
        for pair in combinations(range(len(group.responses)), 2):
            people = [v for one in said if one.kind == "human" and (v := one.verdict(*pair)) is not None]
            looks: dict[str, list[int | None]] = {}
            for one in said:
                if one.kind == "ai":
                    looks.setdefault(one.annotator, []).append(one.verdict(*pair))
            if people and looks:
                hits, pairs = hits + random_person(panel_verdict(looks.values()), people), pairs + 1
    return Share(hits, pairs)


def ranked_by_ai(group: Group) -> bool:
    """Whether the ranks are AIs' alone: no person judged the group, or it says so (`meta.ranks_by`)."""
    return group.meta.get("ranks_by") == "ai" or {one.kind for one in stored_annotations(group)} == {"ai"}
