"""How much a position adds to a response's chance of being picked, and what the response is worth without it.

Two models of a log, both with one propensity for each position, relative to the first:

- examination: every shown response may be picked. P(pick) = propensity[position] * rate (the position-based model;
  Joachims, Swaminathan and Schnabel 2017, arXiv:1608.04468, weight each click by the inverse of its propensity; here
  the propensities come from the log itself, from responses shown at several positions, as in Agarwal et al. 2019,
  arXiv:1812.05161). Fitted as Poisson counts in alternating steps; the rate is the inverse-propensity estimate
  picks / sum of the propensities at which it was shown, which has a smaller variance than weighting every click.
- choice: exactly one of the shown responses is picked. P(pick i) is proportional to propensity[position] * strength:
  Bradley-Terry or Luce with a position effect (Hunter 2004, Ann. Statist. 32(1), section 3: home advantage), fitted by
  minorisation-maximisation with the prior of `alignkit.preferences.rank_fit`; strengths are centred after each step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import erf, sqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_STEPS, LARGEST_LOG = 5000, 30.0
TOLERANCE = 1e-7
PRIOR = 0.1
"""Pseudo-picks that keep the worth of never-picked items finite."""
RESAMPLES = (40, 200)
RESAMPLED_CELLS = 4_000_000
"""A long log is resampled less often, so that about this many of its cells are fitted in all."""


@dataclass(frozen=True, slots=True)
class Impression:
    """What one reader saw: the items in order of position, and the positions that they picked."""

    shown: tuple[int, ...]
    picked: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """A model fitted to a log.

    Attributes:
        propensities: [P] of each position, relative to the first.
        worth: [I] log of each item's strength (choice) or of its rate at the first position (examination).
        shown: [I] how often each item was shown.
        picked: [I] how often each item was picked.
    """

    propensities: Floats
    worth: Floats
    shown: Floats
    picked: Floats

    def confidence(self, one: int, other: int) -> float:
        """Probability that `one` is worth more than `other`: normal, with the variance 1 / picks of a log count. It
        leaves out the uncertainty of the propensities."""
        variance = 1 / (self.picked[one] + PRIOR) + 1 / (self.picked[other] + PRIOR)
        return 0.5 * (1 + erf(float(self.worth[one] - self.worth[other]) / sqrt(2 * variance)))


@dataclass(frozen=True)
class Start:
    """Where a fit starts, and how exactly it ends."""

    propensities: Floats
    worth: Floats
    tolerance: float = TOLERANCE


def fit(impressions: Iterable[Impression], items: int, *, choice: bool, propensities: Sequence[float] = ()) -> Fit:
    """Fits one of the two models.

    Args:
        items: number of items.
        choice: fit the model of one pick per impression, not the examination model.
        propensities: known propensities; empty estimates them.

    Raises:
        ValueError: no item links some positions, so their propensities can't be told apart from the items' worth.
    """
    log = _log_of(impressions, items)
    positions = log.shown.shape[1]
    if propensities and len(propensities) < positions:
        raise ValueError(f"{len(propensities)} propensities for {positions} positions")
    if not propensities and (apart := log.unlinked()) is not None:
        raise ValueError(f"no response links positions 1 and {apart + 1}, even indirectly")
    known = np.array(propensities[:positions], dtype=float) / propensities[0] if propensities else None
    found, worth = (_fit_choice if choice else _fit_examination)(log, known)
    return Fit(found, np.log(worth), log.by_item(log.there), log.by_item(log.picked))


def propensity_intervals(impressions: Iterable[Impression], found: Fit, *, choice: bool) -> Floats:
    """[P, 2] 95% percentile bootstraps over impressions of the propensities that were estimated from this log; 0 to
    infinity where no item links the positions in more than 2.5% of the resamples."""
    log = _log_of(impressions, len(found.worth))
    start = Start(found.propensities, np.exp(found.worth), tolerance=1e-4)
    count = int(np.clip(RESAMPLED_CELLS / log.shown.size, *RESAMPLES))
    linked = [again for again in log.resampled(count) if again.unlinked() is None]
    if len(linked) < 0.975 * count:
        positions = len(found.propensities)
        return np.array([[1.0, 1.0], *([0.0, np.inf] for _ in range(positions - 1))])
    estimated = [(_fit_choice if choice else _fit_examination)(again, None, start)[0] for again in linked]
    bounds: Floats = np.quantile(estimated, [0.025, 0.975], axis=0).T
    return bounds


def _log_of(impressions: Iterable[Impression], items: int) -> _Log:
    counted = Counter(impressions)
    rows = list(counted)
    positions = max(len(row.shown) for row in rows)
    shown = np.full((len(rows), positions), -1)
    picked = np.zeros((len(rows), positions))
    for number, row in enumerate(rows):
        shown[number, : len(row.shown)] = row.shown
        picked[number, list(row.picked)] = 1
    return _Log(shown, picked, np.array([counted[row] for row in rows], dtype=float), items)


@dataclass(frozen=True)
class _Log:
    """Distinct impressions: shown [N, P] item or -1, picked [N, P], weight [N] counts."""

    shown: NDArray[np.int64]
    picked: Floats
    weight: Floats
    items: int

    @property
    def there(self) -> Floats:
        return (self.shown >= 0).astype(float)

    def of_item(self, values: Floats) -> Floats:
        """[I] -> [N, P]; 0 where nothing was shown."""
        spread: Floats = np.where(self.shown >= 0, values[self.shown], 0.0)
        return spread

    def by_item(self, values: Floats) -> Floats:
        """[N, P] -> [I], summed over the log."""
        weighted = (values * self.weight[:, None])[self.shown >= 0]
        return np.bincount(self.shown[self.shown >= 0], weights=weighted, minlength=self.items).astype(float)

    def by_position(self, values: Floats) -> Floats:
        """[N, P] -> [P], summed over the log."""
        summed: Floats = (values * self.weight[:, None]).sum(axis=0)
        return summed

    def centred(self, strengths: Floats) -> Floats:
        """[I] with geometric mean 1 among items that were ever shown together, because only their ratios count."""
        logs = np.log(strengths)
        totals = np.bincount(self.rivals, weights=logs, minlength=self.items)
        sizes = np.bincount(self.rivals, minlength=self.items)
        centred: Floats = np.exp(logs - (totals / np.maximum(sizes, 1))[self.rivals])
        return centred

    @cached_property
    def rivals(self) -> NDArray[np.int64]:
        """[I] the lowest item that each item is compared with, directly or indirectly."""
        lowest = np.arange(self.items)
        while True:
            before = lowest.copy()
            for row in self.shown:
                together = row[row >= 0]
                lowest[together] = lowest[together].min()
            if np.array_equal(before, lowest):
                return lowest

    def resampled(self, count: int) -> Iterator[_Log]:
        """As many logs of as many impressions, drawn with replacement."""
        draw, total = np.random.default_rng(0), int(self.weight.sum())
        for weight in draw.multinomial(total, self.weight / total, size=count):
            seen = weight > 0
            yield _Log(self.shown[seen], self.picked[seen], weight[seen].astype(float), self.items)

    def unlinked(self) -> int | None:
        """A position that no items shown at several positions link with the first one; None if all are linked."""
        joined = list(range(self.shown.shape[1]))
        first: dict[int, int] = {}
        for position, column in enumerate(self.shown.T):
            for item in set(column[column >= 0].tolist()):
                old, new = joined[position], joined[first.setdefault(item, position)]
                joined = [new if one == old else one for one in joined]
        return next((place for place, one in enumerate(joined) if one != joined[0]), None)


def _fit_examination(log: _Log, known: Floats | None, start: Start | None = None) -> tuple[Floats, Floats]:
    picks, looks = log.by_position(log.picked), log.by_item(log.there)
    overall = picks.sum() / looks.sum()

    def step(propensities: Floats, _: Floats) -> tuple[Floats, Floats]:
        exposure = log.by_item(log.there * propensities)
        rates = (log.by_item(log.picked) + PRIOR) / (exposure + PRIOR / overall)
        if known is not None:
            return propensities, rates
        estimated = (picks + PRIOR) / (log.by_position(log.of_item(rates)) + PRIOR)
        return estimated / estimated[0], rates

    return _settled(step, start or Start(_ones(log, known), np.full(log.items, overall)))


def _fit_choice(log: _Log, known: Floats | None, start: Start | None = None) -> tuple[Floats, Floats]:
    won, picks = log.by_item(log.picked) + PRIOR, log.by_position(log.picked)

    def step(propensities: Floats, strengths: Floats) -> tuple[Floats, Floats]:
        total = (log.of_item(strengths) * propensities).sum(axis=1, keepdims=True)
        chances = log.by_item(log.there * propensities / total)
        strengths = log.centred(won / (chances + 2 * PRIOR / (strengths + 1)))
        if known is not None:
            return propensities, strengths
        spread = log.of_item(strengths)
        total = (spread * propensities).sum(axis=1, keepdims=True)
        estimated = (picks + PRIOR) / (log.by_position(spread / total) + PRIOR / propensities)
        return estimated / estimated[0], strengths

    return _settled(step, start or Start(_ones(log, known), np.ones(log.items)))


def _ones(log: _Log, known: Floats | None) -> Floats:
    return np.ones(log.shown.shape[1]) if known is None else known


def _settled(step: Callable[[Floats, Floats], tuple[Floats, Floats]], start: Start) -> tuple[Floats, Floats]:
    """(propensities, worth) that a step does not change any more.

    A log that hardly tells the two apart settles slowly, so every two steps are extrapolated, and a third one follows
    (SQUAREM: Varadhan and Roland 2008, Scand. J. Statist. 35(2), scheme S3).
    """
    positions = len(start.propensities)

    def again(logs: Floats) -> Floats:
        values = np.exp(np.clip(logs, -LARGEST_LOG, LARGEST_LOG))
        return np.log(np.concatenate(step(values[:positions], values[positions:])))

    logs = np.log(np.concatenate([start.propensities, start.worth]))
    for _ in range(MAX_STEPS):
        once = again(logs)
        moved = once - logs
        if np.abs(moved).max() < start.tolerance:
            break
        bent = again(once) - once - moved
        far = max(1.0, float(np.linalg.norm(moved)) / max(float(np.linalg.norm(bent)), 1e-12))
        logs = again(logs + 2 * far * moved + far**2 * bent)
    values = np.exp(once)
    return values[:positions], values[positions:]
