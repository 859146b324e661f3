"""The laws of Gao et al. 2023 (arXiv:2210.10760), fitted to gold against d, the square root of the KL to the start.

Gold less the start's is d (alpha - beta d) for best of n, and d (alpha - beta ln d) for reinforcement learning, which
peaks at d = alpha / 2 beta and at d = exp(alpha / beta - 1). Both are linear in alpha and beta, so least squares are
exact. Deliberately different: gold of each seed's start is fitted with them, not taken from its first batch alone; and
a peak counts only where beta is surely above 0 (else a straight line does as well) and the peak was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignkit_report.compare.statistics import Floats
    from alignkit_report.overopt.curves import Row

Kind = Literal["best-of-n", "rl"]
RESAMPLES = 1000
LEAST = 5
"""Points of a curve that are too few for a law with three free numbers."""
RIDGE = 1e-9
"""Keeps the start of a seed that was not drawn at 0; nothing else notices."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; infinite where there is none."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: Floats) -> Interval:
        # No interpolation: some of them may be infinite.
        low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        starts: gold at no KL, of each seed.
        peak_kl: where gold is highest; infinite if it rises for ever.
        peak_gain: gold there, above the start's.
        measured: the lowest KL above 0 and the highest one that were measured.
    """

    kind: Kind
    starts: tuple[float, ...]
    alpha: Interval
    beta: Interval
    peak_kl: Interval
    peak_gain: Interval
    measured: tuple[float, float]

    @property
    def start(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.starts))

    @property
    def problem(self) -> str:
        """Why there is no peak to speak of; empty if there is one."""
        low, high = self.measured
        if self.beta.low <= 0:
            return "no peak: a straight line fits as well"
        if not low <= self.peak_kl.value <= high:
            return f"no peak within what was measured, {low:.2g} to {high:.2g} nats"
        return ""

    def gain(self, kl: float) -> float:
        """Gold above the start's at a KL."""
        alpha, beta = np.array([self.alpha.value, self.beta.value])
        return float(terms(self.kind, np.array([kl]))[0] @ [alpha, beta])


def terms(kind: Kind, kl: Floats) -> Floats:
    """[M, 2]: what alpha and beta are multiplied with."""
    d = np.sqrt(np.maximum(kl, 0.0))
    if kind == "best-of-n":
        return np.stack([d, -(d**2)], axis=1)
    return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=1)


def peaks(kind: Kind, alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """(KL, gain) of the highest point of each curve; KL and gain are infinite where beta <= 0."""
    with np.errstate(all="ignore"):
        if kind == "best-of-n":
            d = np.maximum(alpha / (2 * beta), 0.0)
            gain = d * (alpha - beta * d)
        else:
            d = np.exp(alpha / beta - 1)
            gain = beta * d
        return np.where(beta > 0, d**2, inf), np.where(beta > 0, gain, inf)


def fit_training(runs: Sequence[Sequence[Row]]) -> Fit | None:
    """The law of reinforcement learning for the rows of several seeds; None if there are too few with gold.

    Its intervals resample seeds, and of each its batches. Few seeds make them too narrow: of S, by about the square
    root of (S - 1) / S.
    """
    own = [[(row["kl"], row["gold"]) for row in rows if "gold" in row] for rows in runs if is_enough(rows)]
    if not own:
        return None
    seeds = np.repeat(np.arange(len(own)), [len(points) for points in own])
    kl, gold = np.array([point for points in own for point in points]).T
    columns = np.concatenate([seeds[:, None] == np.arange(len(own)), terms("rl", kl)], axis=1)
    found = _solved(columns, gold, np.ones((1, len(gold))))[0]
    drawn = _solved(columns, gold, drawn_counts(seeds, len(own)))
    return _fit("rl", found[:-2], found[-2:], drawn[:, -2:], kl)


def is_enough(rows: Sequence[Row]) -> bool:
    """Whether gold was measured often enough away from the start for a fit."""
    return sum("gold" in row and row["kl"] > 0 for row in rows) >= LEAST


def drawn_counts(seeds: NDArray[np.int64], count: int) -> Floats:
    """[B, M]: how often each point is in a resample that draws seeds, and from each its points, with replacement.

    Args:
        seeds: [M], the seed of each point.
    """
    draw = np.random.default_rng(0)
    found = np.zeros((RESAMPLES, len(seeds)))
    of_seed = [np.flatnonzero(seeds == seed) for seed in range(count)]
    for resample, chosen in zip(found, draw.integers(count, size=(RESAMPLES, count)), strict=True):
        for seed in chosen:
            places = of_seed[seed]
            resample[places] += np.bincount(draw.integers(len(places), size=len(places)), minlength=len(places))
    return found


def fit_best_of(kl: Floats, gold: Floats) -> Fit | None:
    """The law of best of n; its intervals resample prompts and, of several, seeds. The start is what n = 1 scores.

    Args:
        kl: [n], from 0 upwards. gold: [n, S, P], of `best_of.curve`.
    """
    _, seeds, prompts = gold.shape
    if len(kl) < LEAST or prompts < 2:
        return None
    draw = np.random.default_rng(0)
    chosen = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    shares = draw.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
    means = np.einsum("nsp,bs,bp->bn", gold, chosen, shares, optimize=True)
    columns = terms("best-of-n", kl)
    found, drawn = ((np.linalg.pinv(columns) @ (one - one[:, :1]).T).T for one in (gold.mean((1, 2))[None], means))
    return _fit("best-of-n", gold[0].mean(axis=1), found[0], drawn, kl)


def _solved(columns: Floats, gold: Floats, counts: Floats) -> Floats:
    """[B, k]: the least squares of each row of counts."""
    square = np.einsum("bm,mi,mj->bij", counts, columns, columns, optimize=True)
    right = np.einsum("bm,mi,m->bi", counts, columns, gold, optimize=True)
    found: Floats = np.linalg.solve(square + RIDGE * np.eye(columns.shape[1]), right[..., None])[..., 0]
    return found


def _fit(kind: Kind, starts: Floats, found: Floats, drawn: Floats, kl: Floats) -> Fit:
    alpha, beta = (Interval.of(found[place], drawn[:, place]) for place in (0, 1))
    ours, theirs = peaks(kind, found[:1], found[1:]), peaks(kind, *drawn.T)
    peak_kl, peak_gain = (Interval.of(one[0], all_) for one, all_ in zip(ours, theirs, strict=True))
    return Fit(
        kind, tuple(starts.tolist()), alpha, beta, peak_kl, peak_gain, (float(kl[kl > 0].min()), float(kl.max()))
    )


def verdict(fit: Fit, kl: float, gold_gain: float) -> str:
    """Where a policy with this KL and this gold above the start's stands to the peak."""
    if fit.problem:
        return fit.problem
    place = "before" if kl < fit.peak_kl.low else "past" if kl > fit.peak_kl.high else "at"
    share = gold_gain / fit.peak_gain.value
    return f"{place} the peak: KL {kl:.1f} of {fit.peak_kl.value:.1f}, {share:.0%} of the peak's gain"


def to_json(fit: Fit, said: str) -> dict[str, Any]:
    """The fit as comparison.json has it; None for what is infinite. `low` and `high` bound the KL of the peak."""
    peak = {"peak_kl": fit.peak_kl.value, "peak_gold": fit.start + fit.peak_gain.value}
    peak |= {"low": fit.peak_kl.low, "high": fit.peak_kl.high}
    values = {"start": fit.start, "alpha": fit.alpha.value, "beta": fit.beta.value, **peak}
    bounds = {"alpha": (fit.alpha.low, fit.alpha.high), "beta": (fit.beta.low, fit.beta.high)}
    return {
        "kind": fit.kind,
        **{name: _finite(value) for name, value in values.items()},
        "intervals": {name: [_finite(one) for one in both] for name, both in bounds.items()},
        "verdict": said,
    }


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
