"""The statistics of `alignkit compare` against known cases: equal algorithms, intervals, ratings."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

import numpy as np
import pytest
from alignkit_report.compare.statistics import corrected, mean_of, p_value, ratings, strengths, wins_between
from statsmodels.stats.multitest import multipletests

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def simulated(
    draw: np.random.Generator, seeds: int, prompts: int, of_seeds: float, of_prompts: float, mean: float = 0.0
) -> Floats:
    """[S, P]: a mean, an effect of each seed, one of each prompt, and noise of standard deviation 1."""
    shifts = of_seeds * draw.normal(size=(seeds, 1)) + of_prompts * draw.normal(size=(1, prompts))
    return mean + shifts + draw.normal(size=(seeds, prompts))


SHAPES = [(1, 64, 0.0, 0.5), (3, 64, 0.2, 0.0), (3, 64, 0.1, 1.0), (3, 64, 1.0, 0.3), (5, 32, 0.5, 1.0)]


@pytest.mark.parametrize(("seeds", "prompts", "of_seeds", "of_prompts"), SHAPES)
def test_equal_algorithms_are_called_different_in_5_percent_of_comparisons(
    seeds: int, prompts: int, of_seeds: float, of_prompts: float
) -> None:
    draw = np.random.default_rng(seeds * prompts)
    found = [p_value(simulated(draw, seeds, prompts, of_seeds, of_prompts)) <= 0.05 for _ in range(1000)]
    assert 0.02 <= np.mean(found) <= 0.08


@pytest.mark.parametrize(("seeds", "prompts", "of_seeds", "of_prompts"), SHAPES)
def test_intervals_hold_the_true_mean_in_95_percent_of_cases(
    seeds: int, prompts: int, of_seeds: float, of_prompts: float
) -> None:
    draw = np.random.default_rng(7 + seeds * prompts)
    estimates = [mean_of(simulated(draw, seeds, prompts, of_seeds, of_prompts, mean=3.0)) for _ in range(1000)]
    assert 0.93 <= np.mean([one.low <= 3.0 <= one.high for one in estimates]) <= 0.97
    assert np.mean([one.value for one in estimates]) == pytest.approx(3.0, abs=0.05)


def test_the_interval_of_one_seed_is_student_s() -> None:
    values = np.array([[1.0, 2.0, 4.0, 5.0]])
    one = mean_of(values)
    # t(0.975; 3) = 3.182446; the standard deviation is sqrt(10/3).
    half = 3.182446 * (10 / 3) ** 0.5 / 2
    assert (one.low, one.value, one.high) == pytest.approx((3 - half, 3, 3 + half), abs=1e-5)
    assert p_value(np.zeros((3, 4))) == 1.0
    assert p_value(np.ones((3, 4))) == 0.0


def test_many_comparisons_are_corrected() -> None:
    # Holm by hand: 0.01 * 3, 0.02 * 2, then the largest so far.
    assert corrected([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    ps = [*np.random.default_rng(0).random(20) ** 3, 0.9, 0.9]
    assert corrected(ps) == pytest.approx(multipletests(ps, method="holm")[1].tolist())
    assert corrected([]) == []


def test_ratings_are_choix_s() -> None:
    choix = pytest.importorskip("choix", reason="choix is not installed")
    draw = np.random.default_rng(3)
    scores = [draw.normal(loc=mean, size=(2, 400, 2)) for mean in (0.0, 0.3, 0.9)]
    found = ratings(wins_between(scores))
    wins = [(a, b) for a in range(3) for b in range(3) if a != b for _ in range(int((scores[a] > scores[b]).sum()))]
    expected = choix.opt_pairwise(3, wins, alpha=0.0, method="Newton-CG", tol=1e-12)
    points = [(one - expected[0]) * 400 / log(10) for one in expected]
    assert [one.value for one in found] == pytest.approx(points, abs=1e-4)  # 6e-7 in log-odds
    assert found[0].low == found[0].high == 0.0
    assert found[2].low < found[2].value < found[2].high


@pytest.mark.parametrize(
    ("seeds", "of_seeds"),
    [
        (3, 0.3),
        pytest.param(1, 0.0, marks=pytest.mark.slow),
        pytest.param(5, 0.2, marks=pytest.mark.slow),
    ],
)
def test_intervals_of_ratings_hold_the_truth_where_seeds_differ(seeds: int, of_seeds: float) -> None:
    """Luce's choice by Gumbel noise, so that a win has odds exp(difference of the means): ratings of 400 / log(10)."""
    draw = np.random.default_rng(seeds)
    held = []
    for _ in range(500):
        shifts = of_seeds * draw.normal(size=(3, seeds, 1, 1))
        scores = [mean + shift + draw.gumbel(size=(seeds, 48, 1)) for mean, shift in zip(MEANS, shifts, strict=True)]
        found = ratings(wins_between(scores))
        held += [one.low <= mean * 400 / log(10) <= one.high for one, mean in zip(found[1:], MEANS[1:], strict=True)]
    assert 0.93 <= np.mean(held) <= 0.97


MEANS = (0.0, 0.2, 0.6)


def test_one_that_always_wins_has_a_finite_rating() -> None:
    found = strengths(np.array([[[0.0, 9.0], [0.0, 0.0]]]))[0]
    assert 5 < found[0] - found[1] < 50


def test_ties_count_as_half_and_abstentions_as_nothing() -> None:
    ours, theirs = np.array([[[1.0, 2.0, 3.0, np.nan]]]), np.array([[[1.0, 1.0, 5.0, 0.0]]])
    wins = wins_between([ours, theirs])
    assert wins[0, 1, 0, 0] == pytest.approx(1.5 / 3)
    assert wins[1, 0, 0, 0] == pytest.approx(1.5 / 3)
