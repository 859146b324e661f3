"""From verdicts to rankings: ties, abstentions, orders, judges, cycles, and a judge with position bias."""

from __future__ import annotations

import math
import random
from itertools import combinations
from typing import Any

import pytest
from alignkit_judge.votes import Ballot, agreed, most_frequent, outcome, position_bias, position_counts

FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
NONE = (None, None)


def pair(values: tuple[float | None, float | None], *, turn: int = 0, judge: str = "one", **more: Any) -> Ballot:
    """A ballot on responses 0 and 1; in turn 1 they, and their values, are the other way round."""
    return Ballot(judge, turn, (0, 1) if turn == 0 else (1, 0), values, **more)


@pytest.mark.parametrize(
    ("forth", "back", "ranks"),
    [
        (FIRST, SECOND, {0: 0, 1: 1}),
        (SECOND, FIRST, {0: 1, 1: 0}),
        (TIE, TIE, {0: 0, 1: 0}),
        (FIRST, FIRST, {0: 0, 1: 0}),
        (FIRST, TIE, {0: 0, 1: 0}),
        (FIRST, NONE, {}),
        (NONE, NONE, {}),
        ((0.52, 0.48), SECOND, {0: 0, 1: 0}),
        ((0.53, 0.47), (0.47, 0.53), {0: 0, 1: 1}),
    ],
)
def test_both_orders(forth: Any, back: Any, ranks: dict[int, int]) -> None:
    found = outcome([pair(forth), pair(back, turn=1)], 2, 0.05)
    assert found.ranks == ranks
    assert found.abstained == float(not ranks)


def test_margins_and_disagreements() -> None:
    clear = outcome([pair(FIRST), pair(SECOND, turn=1)], 2, 0)
    torn = outcome([pair(FIRST), pair(FIRST, turn=1)], 2, 0)
    half = outcome([pair(FIRST), pair(TIE, turn=1)], 2, 0)
    assert [(found.margin, found.orders_disagree) for found in (clear, torn, half)] == [(1, 0), (0, 1), (0.5, 1)]
    judges = [pair(FIRST, judge="a"), pair(FIRST, judge="b"), pair(SECOND, judge="c"), pair(NONE, judge="d")]
    voted = outcome(judges, 2, 0)
    assert (voted.ranks, voted.judges_disagree, voted.margin) == ({0: 0, 1: 1}, 1, 0.25)
    assert outcome(judges[1:3], 2, 0).ranks == {0: 0, 1: 0}


def test_the_margin_says_how_sure_a_judge_is() -> None:
    clear = outcome([Ballot("a", 0, (0, 1), (9.0, 2.0), scored=True)], 2, 0.05)
    close = outcome([Ballot("a", 0, (0, 1), (8.0, 7.0), scored=True)], 2, 0.05)
    assert (clear.ranks, clear.margin) == (close.ranks, pytest.approx(7 / 9))
    assert close.margin == pytest.approx(1 / 9)
    chances = outcome([pair((0.7, 0.3)), pair((0.4, 0.6), turn=1)], 2, 0.05)
    assert chances.margin == pytest.approx((0.4 + 0.2) / 2)
    ranking = outcome([Ballot("a", 0, (0, 1, 2), (1.0, 0.5, 0.25))], 3, 0.05)
    assert ranking.margin == 1


def test_votes_by_frequency() -> None:
    assert [most_frequent(votes) for votes in ([1, 1, -1], [1, -1], [0, 1, 1, 0], [None, 1], [None, 1, 1], [])] == [
        1,
        0,
        0,
        None,
        1,
        None,
    ]
    assert [agreed(votes) for votes in ([1], [1, 1], [1, -1], [1, None])] == [1, 1, 0, None]


def test_samples_are_settled_before_orders() -> None:
    forth = [pair(FIRST), pair(FIRST), pair(SECOND)]
    assert outcome([*forth, pair(SECOND, turn=1)], 2, 0).ranks == {0: 0, 1: 1}


def test_scores_rank_and_tie_as_a_share_of_the_scale() -> None:
    scored = Ballot("one", 0, (0, 1, 2, 3), (7.0, 7.4, 2.0, None), scored=True)
    assert outcome([scored], 4, 0.05).ranks == {0: 0, 1: 0, 2: 2}
    assert outcome([scored], 4, 0.04).ranks == {0: 1, 1: 0, 2: 2}


def test_a_response_that_no_verdict_connects_is_dropped_and_cycles_are_named() -> None:
    beats = [(0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)]
    ballots = [Ballot("one", 0, shown, FIRST) for shown in beats]
    found = outcome([*ballots, Ballot("one", 0, (3, 4), NONE)], 5, 0)
    assert found.ranks == {0: 0, 1: 0, 2: 0, 3: 3}
    assert found.cycles == ((0, 1, 2),)
    assert found.abstained == pytest.approx(0.4)
    assert found.annotations[0].ranks is None


def test_annotations_keep_the_orders_apart() -> None:
    forth = [Ballot("one", 0, shown, FIRST) for shown in combinations((0, 1, 2), 2)]
    back = [Ballot("one", 1, shown, FIRST) for shown in combinations((2, 1, 0), 2)]
    found = outcome([*forth, *back], 3, 0)
    assert [(note.ranks, note.order, note.kind) for note in found.annotations] == [
        ((0, 1, 2), (0, 1, 2), "ai"),
        ((2, 1, 0), (2, 1, 0), "ai"),
    ]
    assert set(found.ranks.values()) == {0}


QUALITIES = (0.6, 0.2, -0.2, -0.6)


def biased_ballot(draw: random.Random, turn: int, shown: tuple[int, int], bias: float) -> Ballot:
    chance = 1 / (1 + math.exp(QUALITIES[shown[1]] - QUALITIES[shown[0]]))
    return Ballot("one", turn, shown, FIRST if draw.random() < chance + bias else SECOND)


def test_both_orders_recover_the_ranking_from_a_judge_biased_by_20_points() -> None:
    """The worse response always comes first, as in a sorted file: one order alone gives the wrong ranking."""
    draw = random.Random(0)
    shown = [pair[::-1] for pair in combinations(range(4), 2)]
    ballots = [biased_ballot(draw, 0, one, 0.2) for one in shown for _ in range(500)]
    back = [biased_ballot(draw, 1, one[::-1], 0.2) for one in shown for _ in range(500)]
    strengths = {
        name: [sum(_won(ballot, index) for ballot in said) for index in range(4)]
        for name, said in (("one", ballots), ("both", [*ballots, *back]))
    }
    assert sorted(range(4), key=lambda index: -strengths["both"][index]) == [0, 1, 2, 3]
    assert strengths["one"][0] < strengths["one"][3]
    assert position_bias(position_counts([*ballots, *back], 0)) == pytest.approx(20, abs=3)


def _won(ballot: Ballot, index: int) -> float:
    return ballot.values[ballot.shown.index(index)] or 0.0 if index in ballot.shown else 0.0


def test_position_bias_counts_decided_verdicts() -> None:
    ballots = [pair(FIRST)] * 6 + [pair(FIRST, turn=1)] * 3 + [pair(SECOND)] + [pair(TIE)] * 5 + [pair(NONE)] * 5
    assert position_bias(position_counts(ballots, 0)) == pytest.approx(40)
    assert position_bias(position_counts([pair(TIE)], 0)) == 0
    scored = Ballot("one", 0, (0, 1), (9.0, 1.0), scored=True)
    assert not position_counts([scored], 0)
