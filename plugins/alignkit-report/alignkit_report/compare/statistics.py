"""Intervals and tests for runs over several seeds on the same prompts, and ratings from their duels.

A figure has a value for each seed and prompt, [S, P]. Seeds and prompts are both samples of what one wants to know
about, so both are random effects: the variance of the mean is (MS_seeds + MS_prompts - MS_rest) / (S P) with
Satterthwaite's degrees of freedom (Clark 1973, J. Verbal Learning and Verbal Behavior 12, 335-359: the quasi-F test),
never below the larger of the first two alone. In simulations of three and more seeds equal algorithms differ at p =
0.05 in 3 to 6% of cases, in 1 to 2% where seeds make no difference at all; of two seeds in up to 9%. With one seed only
prompts are random, and the interval says nothing about other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from alignkit.commands import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
ELO = 400 / np.log(10)
"""Points of a rating for a log-odds of 1: 400 points are odds of 10 to 1."""
RIDGE, TOLERANCE, MAX_STEPS = 1e-6, 1e-10, 100


@dataclass(frozen=True)
class _Spread:
    """The mean of a [S, P] figure, its standard error, and its degrees of freedom."""

    mean: float
    error: float
    freedom: float


def _spread(values: Floats) -> _Spread:
    seeds, prompts = values.shape
    mean = float(values.mean())
    if seeds == 1:
        return _Spread(mean, float(values.std(ddof=1) / np.sqrt(prompts)), prompts - 1.0)
    of_seeds, of_prompts = values.mean(axis=1), values.mean(axis=0)
    rest = values - of_seeds[:, None] - of_prompts[None, :] + mean
    squares = np.array([prompts * of_seeds.var(ddof=1), seeds * of_prompts.var(ddof=1), 0.0])
    freedoms = np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)], dtype=np.float64)
    squares[2] = (rest**2).sum() / freedoms[2]
    # Their sum counts the rest twice; the larger of the first two alone is the least that it can be.
    total = max(squares[0] + squares[1] - squares[2], squares[:2].max())
    if not total:
        return _Spread(mean, 0.0, freedoms[0])
    freedom = float(total**2 / (squares**2 / freedoms).sum())
    return _Spread(mean, float(np.sqrt(total / values.size)), freedom)


def mean_of(values: Floats) -> Estimate:
    """The mean of a figure over seeds and prompts, with its 95% interval.

    Args:
        values: [S, P], one per seed and prompt; at least two prompts.
    """
    spread = _spread(values)
    half = spread.error * float(stats.t.ppf((1 + LEVEL) / 2, spread.freedom))
    return Estimate(spread.mean, spread.mean - half, spread.mean + half, values.size)


def share_of(values: Floats) -> Estimate:
    """Like `mean_of`, for a figure between 0 and 1: so is its interval."""
    found = mean_of(values)
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0), found.count)


def p_value(differences: Floats) -> float:
    """The probability of a mean difference at least this far from 0, either way, if there is none.

    Args:
        differences: [S, P] of two algorithms on the same seeds and prompts.
    """
    spread = _spread(differences)
    if not spread.error:
        return float(spread.mean == 0)
    return float(2 * stats.t.sf(abs(spread.mean) / spread.error, spread.freedom))


def corrected(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979): below 0.05 in at most 5% of comparisons without any
    difference.

    As statsmodels' `multipletests`, which collects all garbage of the process at every call: half a second, for each
    measure.
    """
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    found = np.empty(len(order))
    found[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in found]


def wins_between(scores: Sequence[Floats]) -> Floats:
    """[A, A, S, P]: share of the duels on each seed and prompt that the row wins; a tie counts as half.

    Args:
        scores: of each algorithm [S, P, n]; the k-th response fights the k-th. NaN where the judge abstained: no duel.
    """
    return np.array([[won(ours, theirs) for theirs in scores] for ours in scores])


def won(ours: Floats, theirs: Floats) -> Floats:
    """[S, P]: share of the duels that ours win; 0.5 where the judge abstained on all."""
    fought = ~(np.isnan(ours) | np.isnan(theirs))
    shares = (ours > theirs) + 0.5 * (ours == theirs)
    count = fought.sum(axis=-1)
    total = np.where(fought, shares, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), 0.5)


def ratings(wins: Floats, *, anchor: int = 0) -> list[Estimate]:
    """Bradley-Terry ratings in Elo points above the anchor's, with 95% intervals.

    A rating is a smooth function of the duels, so to first order it is the mean of a figure of each seed and prompt:
    the rating, and what their duels move it by (its influence function). Seeds and prompts are then both random, as
    for any other figure. Resampling can't do that with three seeds: of prompts alone it holds the truth in half of the
    cases once seeds differ.

    Args:
        wins: [A, A, S, P], from `wins_between`; at least two prompts.
    """
    total = wins.sum(axis=(-2, -1))
    found = strengths(total[None])[0]
    chance = 1 / (1 + np.exp(found[None, :] - found[:, None]))
    surprise = (wins - (wins + wins.swapaxes(0, 1)) * chance[..., None, None]).sum(axis=1)
    surprise -= surprise.mean(axis=(-2, -1), keepdims=True)
    moves = np.linalg.solve(_information(total + total.T, chance), surprise.reshape(len(found), -1)) * surprise[0].size
    points = ELO * (found[:, None, None] + moves.reshape(surprise.shape))
    return [mean_of(one) for one in points - points[anchor]]


def strengths(wins: Floats) -> Floats:
    """[B, A] log-strengths that maximise the likelihood of each table of wins, P(a beats b) = sigmoid(s_a - s_b).

    By Newton's method. A normal prior of precision RIDGE keeps the strength of one that always wins finite, and moves
    no other by more than about RIDGE over its number of duels.

    Args:
        wins: [B, A, A] of row over column; the diagonal doesn't count.
    """
    games = wins + wins.swapaxes(-1, -2)
    found = np.zeros(wins.shape[:-1])
    for _ in range(MAX_STEPS):
        chance = 1 / (1 + np.exp(found[:, None, :] - found[:, :, None]))
        gradient = (wins - games * chance).sum(axis=-1) - RIDGE * found
        step = np.linalg.solve(_information(games, chance), gradient[..., None])[..., 0]
        found += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < TOLERANCE:
            break
    return found


def _information(games: Floats, chance: Floats) -> Floats:
    """[..., A, A]: minus the second derivative of the log-likelihood, with the prior's.

    Args:
        games: [..., A, A] duels between row and column. chance: [..., A, A] that the row wins one.
    """
    each = np.arange(games.shape[-1])
    curvature = -games * chance * (1 - chance)
    curvature[..., each, each] = 0.0
    curvature[..., each, each] = RIDGE - curvature.sum(axis=-1)
    return curvature
