"""Agreement of annotators: raw agreement, Cohen's kappa, Krippendorff's alpha, intervals. Imports no torch.

- Cohen (1960), A coefficient of agreement for nominal scales.
- Krippendorff (2011), Computing Krippendorff's alpha-reliability: nominal data with missing values.
- Wilson (1927), Probable inference: the interval of a share.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

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


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two annotators on the `n` cases that both judged.

    Attributes:
        observed: share of cases with the same verdict.
        kappa: (observed - expected) / (1 - expected), where `expected` is the chance agreement at their frequencies;
            None if that is 1.
    """

    n: int
    observed: float
    kappa: float | None

    def to_json(self) -> dict[str, Any]:
        kappa = None if self.kappa is None else round(self.kappa, 4)
        return {"n": self.n, "agreement": round(self.observed, 4), "kappa": kappa}


def raw_agreement(pairs: Iterable[tuple[Hashable, Hashable]]) -> Agreement | None:
    """Agreement of two annotators' verdicts on the same cases; None without cases."""
    both = list(pairs)
    if not both:
        return None
    n = len(both)
    observed = sum(one == other for one, other in both) / n
    ones, others = Counter(one for one, _ in both), Counter(other for _, other in both)
    expected = sum(count * others[verdict] for verdict, count in ones.items()) / n**2
    return Agreement(n, observed, None if expected == 1 else (observed - expected) / (1 - expected))


def krippendorff_alpha(units: Iterable[Iterable[Hashable | None]]) -> float | None:
    """Krippendorff's alpha of nominal values: 1 is full agreement, 0 is chance.

    Args:
        units: the annotators' values for each unit, None if missing. Units with fewer than two values are skipped.

    Returns:
        1 - observed / expected disagreement; None if no unit has two values, or all values are the same.
    """
    disagreement = 0.0
    totals: Counter[Hashable] = Counter()
    for values in units:
        known = Counter(value for value in values if value is not None)
        m = known.total()
        if m < 2:
            continue
        totals += known
        disagreement += (m * m - sum(count * count for count in known.values())) / (m - 1)
    n = totals.total()
    expected = n * n - sum(count * count for count in totals.values())
    return 1 - (n - 1) * disagreement / expected if expected else None


def most_frequent(values: Iterable[int | None]) -> int | None:
    """The most frequent verdict; None if there is none, or a tie."""
    ranked = Counter(value for value in values if value is not None).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]
