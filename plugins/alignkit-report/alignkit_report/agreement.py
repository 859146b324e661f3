"""Agreement of annotators: raw agreement, Cohen's kappa, Krippendorff's alpha, each with its interval. No torch.

- Cohen (1960), A coefficient of agreement for nominal scales.
- Krippendorff (2011), Computing Krippendorff's alpha-reliability: nominal and ordinal data with missing values.

Intervals are 95% percentile bootstraps over clusters (prompts), because verdicts on one prompt are not independent.
Every figure is a function of sums over clusters, and clusters that add the same to them are drawn as one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Distance = Callable[[Floats], Floats]
    Unit = Iterable[Hashable | None]

RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, None if it has fewer than two clusters."""

    value: float
    interval: Interval | None

    def to_json(self) -> dict[str, float | None]:
        low, high = self.interval or (None, None)
        return {"value": round(self.value, 4), "low": _rounded(low), "high": _rounded(high)}


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
    observed_interval: Interval | None = None
    kappa_interval: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "agreement": round(self.observed, 4),
            "kappa": _rounded(self.kappa),
            "agreement_interval": _both(self.observed_interval),
            "kappa_interval": _both(self.kappa_interval),
        }


def raw_agreement(
    pairs: Iterable[tuple[Hashable, Hashable]], clusters: Iterable[Hashable] | None = None
) -> Agreement | None:
    """Agreement of two annotators' verdicts on the same cases; None without cases.

    Args:
        clusters: the cluster (prompt) of each case; by default each case is one.
    """
    both = list(pairs)
    if not both:
        return None
    values = {value: place for place, value in enumerate(dict.fromkeys(v for case in both for v in case))}
    size = len(values)
    places = [values[one] * size + values[other] for one, other in both]
    tables = _summed(places, np.ones(len(both)), clusters, size * size)
    whole = tables.sum(axis=0, keepdims=True)
    kappa = float(_kappa(whole)[0])
    return Agreement(
        len(both),
        float(_observed(whole)[0]),
        None if np.isnan(kappa) else kappa,
        resampled(tables, _observed),
        None if np.isnan(kappa) else resampled(tables, _kappa),
    )


def krippendorff_alpha(
    units: Iterable[Unit], clusters: Iterable[Hashable] | None = None, distance: Distance | None = None
) -> Estimate | None:
    """Krippendorff's alpha: 1 is full agreement, 0 is chance.

    Args:
        units: the annotators' values for each unit, None if missing. Units with fewer than two values are skipped.
        clusters: the cluster (prompt) of each unit; by default each unit is one.
        distance: [..., V] counts of the values in ascending order -> [..., V, V] squared distances; `nominal` if None.

    Returns:
        1 - observed / expected disagreement; None if no unit has two values, or all values are the same.
    """
    listed = [[value for value in unit if value is not None] for unit in units]
    names = list(clusters) if clusters is not None else list(range(len(listed)))
    known = [(name, values) for name, values in zip(names, listed, strict=True) if len(values) > 1]
    order: list[Any] = sorted({value for _, values in known for value in values})
    size = len(order)
    if size < 2:
        return None
    cells: list[int] = []
    weights: list[float] = []
    owners: list[Hashable] = []
    for name, values in known:
        counts = Counter(map(order.index, values))
        for one, times in counts.items():
            for other, others in counts.items():
                cells.append(one * size + other)
                weights.append(times * (others - (one == other)) / (len(values) - 1))
                owners.append(name)
    tables = _summed(cells, np.array(weights), owners, size * size)

    def alpha(summed: Floats) -> Floats:
        return _alpha(summed.reshape(-1, size, size), distance or nominal)

    return Estimate(float(alpha(tables.sum(axis=0, keepdims=True))[0]), resampled(tables, alpha))


def nominal(counts: Floats) -> Floats:
    """Values are the same or not."""
    size = counts.shape[-1]
    apart: Floats = np.broadcast_to(1.0 - np.eye(size), (*counts.shape[:-1], size, size))
    return apart


def ordinal(counts: Floats) -> Floats:
    """Values are as far apart as many values lie between them, halves of their own counts included."""
    middles = np.cumsum(counts, axis=-1) - counts / 2
    apart: Floats = (middles[..., :, None] - middles[..., None, :]) ** 2
    return apart


def resampled(parts: Floats, figure: Callable[[Floats], Floats]) -> Interval | None:
    """The 95% interval of a figure of sums over clusters; None for fewer than two clusters.

    Args:
        parts: [C, D] what each cluster adds to the sums.
        figure: [B, D] sums -> [B] figures, NaN where it is not defined.
    """
    if len(parts) < 2:
        return None
    distinct, times = np.unique(parts, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(parts), times / len(parts), size=RESAMPLES)
    found = figure(drawn @ distinct)
    found = found[np.isfinite(found)]
    return (float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))) if len(found) else None


def _summed(cells: Sequence[int], weights: Floats, clusters: Iterable[Hashable] | None, size: int) -> Floats:
    """[C, size] sums of the weights in each cell, by cluster."""
    rows: dict[Hashable, int] = defaultdict(lambda: len(rows))
    places = [rows[name] for name in (clusters if clusters is not None else range(len(cells)))]
    table = np.zeros((len(rows), size))
    np.add.at(table, (places, cells), weights)
    return table


def _observed(tables: Floats) -> Floats:
    size = round(tables.shape[-1] ** 0.5)
    same: Floats = tables[:, :: size + 1].sum(axis=1) / tables.sum(axis=1)
    return same


def _kappa(tables: Floats) -> Floats:
    """[B] kappas of [B, V * V] tables; NaN where chance agrees always."""
    size = round(tables.shape[-1] ** 0.5)
    square = tables.reshape(-1, size, size)
    expected = (square.sum(axis=1) * square.sum(axis=2)).sum(axis=1) / square.sum(axis=(1, 2)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Floats = np.where(expected < 1, (_observed(tables) - expected) / (1 - expected), np.nan)
    return kappa


def _alpha(coincidences: Floats, distance: Distance) -> Floats:
    """[B] alphas of [B, V, V] coincidences; NaN where all values are the same."""
    counts = coincidences.sum(axis=2)
    apart = distance(counts)
    observed = (coincidences * apart).sum(axis=(1, 2))
    expected = (counts[:, :, None] * counts[:, None, :] * apart).sum(axis=(1, 2)) / (counts.sum(axis=1) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha: Floats = np.where(expected > 0, 1 - observed / expected, np.nan)
    return alpha


def _both(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(bound) for bound in interval]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
