"""Rankings from comparisons: fits against their likelihood equations and closed forms, contradictions by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignkit.preferences.annotations import Annotation
from alignkit.preferences.rank_fit import (
    bradley_terry,
    compared_together,
    intransitive_cycles,
    ranks_of,
    voted_ranks,
    wins_of,
)


def test_wins_count_ties_as_a_half_for_each() -> None:
    wins = wins_of([(0, 1, 1.0), (0, 1, 0.5), (2, 0, 0.0)], 3)
    assert wins.tolist() == [[0, 1.5, 1], [0.5, 0, 0], [0, 0, 0]]
    for verdict in ((0, 0, 1.0), (0, 3, 1.0), (-1, 0, 1.0), (0, 1, 1.5)):
        with pytest.raises(ValueError, match="not a comparison"):
            wins_of([verdict], 3)


def test_two_responses_have_the_log_odds_of_their_wins() -> None:
    strengths = bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]), prior=0.0)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3), abs=1e-6)
    assert strengths.sum() == pytest.approx(0, abs=1e-12)


def test_expected_wins_are_the_wins_at_the_maximum() -> None:
    wins = np.random.default_rng(0).integers(1, 9, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    strengths = bradley_terry(wins, prior=0.0)
    probability = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    np.testing.assert_allclose(((wins + wins.T) * probability).sum(1), wins.sum(1), rtol=1e-6)


def test_the_prior_keeps_a_clean_sweep_finite_and_in_order() -> None:
    strengths = bradley_terry(wins_of([(0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.0)], 3))
    assert np.isfinite(strengths).all()
    assert ranks_of(strengths) == (0, 1, 2)


def test_ranks_share_places_within_the_tolerance() -> None:
    assert ranks_of(np.array([0.5, 2.0, 0.5 + 1e-9, -1.0])) == (1, 0, 1, 3)
    assert ranks_of(np.array([])) == ()


def test_what_no_comparison_connects_is_apart() -> None:
    assert compared_together(wins_of([(0, 3, 0.5), (3, 4, 1.0)], 5)) == [[0, 3, 4], [1], [2]]


def test_circles_are_named_once() -> None:
    circle = [(2, 0, 1.0), (0, 1, 1.0), (1, 2, 1.0), (3, 0, 1.0), (3, 1, 0.5)]
    assert intransitive_cycles(wins_of(circle, 4)) == [(0, 1, 2)]
    long = [(0, 1, 1.0), (1, 2, 1.0), (2, 3, 1.0), (3, 0, 1.0)]
    assert intransitive_cycles(wins_of(long, 4)) == [(0, 1, 2, 3)]
    assert intransitive_cycles(wins_of([(0, 1, 1.0), (1, 2, 1.0), (0, 2, 0.5)], 3)) == []


def test_annotators_vote_and_those_who_abstain_do_not() -> None:
    said = [Annotation("a", (0, 1, 2)), Annotation("b", (0, 1, 1)), Annotation("c", (1, 0, 2)), Annotation("d", None)]
    assert voted_ranks(said, 3) == (0, 1, 2)
    assert voted_ranks(said[1:2], 3) == (0, 1, 1)
    assert voted_ranks(said[3:], 3) is None
