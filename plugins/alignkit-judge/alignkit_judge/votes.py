"""From single verdicts to a ranking: samples, then orders, then judges, then a Bradley-Terry fit over all pairs.

The most frequent verdict among a question's samples counts; different verdicts in the two orders are a tie
(arXiv:2305.17926, arXiv:2306.05685); then the most frequent verdict among the judges that did not abstain counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from alignkit.preferences import (
    Annotation,
    Share,
    bradley_terry,
    compared_together,
    intransitive_cycles,
    ranks_of,
    wins_of,
)
from alignkit_judge.questions import HIGHEST, LOWEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray


Pair = tuple[int, int]
Vote = int | None
"""1: the first of a pair is better, -1: the second, 0: a tie, None: an abstention."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One answer of one judge about responses of a group.

    Attributes:
        turn: number of the order in which the group is shown.
        shown: indices of the group's responses, in the order shown.
        values: one number for each, higher is better; None if the judge abstained.
        scored: whether the values are scores, each given without seeing the others.
    """

    judge: str
    turn: int
    shown: tuple[int, ...]
    values: tuple[float | None, ...]
    scored: bool = False
    reason: str = ""

    @property
    def graded(self) -> bool:
        """Whether the margins say how sure the judge is: in a ranking of three or more they only say who is ahead."""
        return self.scored or len(self.shown) == 2

    def votes(self, min_margin: float) -> dict[Pair, Vote]:
        """The vote on each pair (i, j) in the order shown, i before j; a smaller margin than this is a tie."""
        return {pair: _vote(margin, min_margin) for pair, margin in self.margins().items()}

    def margins(self) -> dict[Pair, float | None]:
        """How much better the first of each pair is, from -1 to 1; None for an abstention.

        For scores: their difference as a share of the scale; otherwise the difference of the two chances as a share of
        their sum.
        """
        return {
            (self.shown[a], self.shown[b]): self._margin(self.values[a], self.values[b])
            for a, b in combinations(range(len(self.shown)), 2)
        }

    def _margin(self, first: float | None, second: float | None) -> float | None:
        if first is None or second is None:
            return None
        if self.scored:
            return (first - second) / (HIGHEST - LOWEST)
        return (first - second) / (first + second)


def _vote(margin: float | None, min_margin: float) -> Vote:
    if margin is None:
        return None
    return 0 if margin == 0 or abs(margin) < min_margin else (1 if margin > 0 else -1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a group's ballots.

    Attributes:
        verdicts: on each pair (i, j), i < j, on which at least one judge did not abstain.
        ranks: by index of the response, for the two or more that comparisons connect; otherwise empty.
        annotations: one for each judge and order.
        margin: mean over all pairs of how far the verdicts lean to one side, 0 (not at all, or all abstained) to 1:
            scores of 8 and 7 lean less than scores of 9 and 2.
        orders_disagree: share of (pair, judge) with verdicts in both orders where the two differ.
        both_orders: number of (pair, judge) with verdicts in both orders.
        judges_disagree: share of pairs with verdicts of several judges where the judges differ.
        abstained: share of pairs without a verdict.
        cycles: cycles of verdicts that no ranking can reproduce.
    """

    verdicts: Mapping[Pair, int]
    ranks: Mapping[int, int]
    annotations: tuple[Annotation, ...]
    margin: float
    orders_disagree: float
    both_orders: int
    judges_disagree: float
    abstained: float
    cycles: tuple[tuple[int, ...], ...]


def outcome(ballots: Sequence[Ballot], count: int, min_margin: float) -> Outcome:
    """The result of these ballots on a group of `count` responses."""
    samples: dict[tuple[str, int, Pair], list[Vote]] = defaultdict(list)
    leaning: dict[Pair, list[float]] = defaultdict(list)
    for ballot in ballots:
        for (i, j), margin in ballot.margins().items():
            pair, turned = ((i, j), margin) if i < j else ((j, i), None if margin is None else -margin)
            vote = _vote(turned, min_margin)
            samples[ballot.judge, ballot.turn, pair].append(vote)
            leaning[pair].append((turned if ballot.graded else vote) or 0.0)
    turns: dict[tuple[str, Pair], list[Vote]] = defaultdict(list)
    for (judge, _, pair), votes in samples.items():
        turns[judge, pair].append(most_frequent(votes))
    judges: dict[Pair, list[Vote]] = defaultdict(list)
    for (_, pair), votes in turns.items():
        judges[pair].append(agreed(votes))
    said = {pair: most_frequent([vote for vote in votes if vote is not None]) for pair, votes in judges.items()}
    verdicts = {pair: vote for pair, vote in said.items() if vote is not None}
    wins = _wins(verdicts, count)
    pairs = list(combinations(range(count), 2))
    return Outcome(
        verdicts=verdicts,
        ranks=_ranks(verdicts, count),
        annotations=tuple(_annotations(ballots, samples, count)),
        margin=fmean(abs(fmean(leaning[pair])) if leaning[pair] else 0.0 for pair in pairs),
        orders_disagree=_disagreement(turns.values()),
        both_orders=len(_compared(turns.values())),
        judges_disagree=_disagreement(judges.values()),
        abstained=1 - len(verdicts) / len(pairs),
        cycles=tuple(intransitive_cycles(wins)),
    )


def most_frequent(votes: Sequence[Vote]) -> Vote:
    """The most frequent vote. Equal counts make a tie; if abstentions are among them, an abstention."""
    counts = Counter(votes)
    leading = [vote for vote, times in counts.items() if times == max(counts.values())]
    return leading[0] if len(leading) == 1 else None if None in leading or not leading else 0


def agreed(votes: Sequence[Vote]) -> Vote:
    """The verdict if all orders agree, a tie if they differ, an abstention if one abstained."""
    return None if None in votes else votes[0] if len(set(votes)) == 1 else 0


def position_counts(ballots: Iterable[Ballot], min_margin: float) -> Counter[Vote]:
    """Votes for the response shown first (1), for the later one (-1), ties (0) and abstentions (None)."""
    return Counter(vote for ballot in ballots if not ballot.scored for vote in ballot.votes(min_margin).values())


def first_wins(counts: Mapping[Vote, int]) -> Share:
    """How often the response shown first wins; ties don't count."""
    return Share(counts.get(1, 0), counts.get(1, 0) + counts.get(-1, 0))


def position_bias(counts: Mapping[Vote, int]) -> float:
    """The share of wins of the response shown first, minus 50, in percentage points; 0 if there are only ties."""
    share = first_wins(counts).value
    return 0.0 if share is None else 100 * (share - 0.5)


def orders_agree(outcomes: Iterable[Outcome]) -> Share:
    """How often the verdicts in the two orders are the same, over the pairs of all groups and the judges."""
    compared = [(found.both_orders, found.orders_disagree) for found in outcomes]
    return Share(sum(round(n * (1 - share)) for n, share in compared), sum(n for n, _ in compared))


def _disagreement(cases: Iterable[Sequence[Vote]]) -> float:
    compared = _compared(cases)
    return fmean(len(set(votes)) > 1 for votes in compared) if compared else 0.0


def _compared(cases: Iterable[Sequence[Vote]]) -> list[list[int]]:
    """The cases with two or more votes, without abstentions."""
    known = [[vote for vote in votes if vote is not None] for votes in cases]
    return [votes for votes in known if len(votes) > 1]


def _ranks(verdicts: Mapping[Pair, int], count: int) -> dict[int, int]:
    wins = _wins(verdicts, count)
    members = compared_together(wins)[0]
    if len(members) < 2:
        return {}
    ranks = ranks_of(bradley_terry(wins[members][:, members]))
    return dict(zip(members, ranks, strict=True))


def _wins(verdicts: Mapping[Pair, int], count: int) -> NDArray[np.float64]:
    return wins_of([(i, j, (1 + vote) / 2) for (i, j), vote in verdicts.items()], count)


def _annotations(
    ballots: Sequence[Ballot], samples: Mapping[tuple[str, int, Pair], Sequence[Vote]], count: int
) -> list[Annotation]:
    """One for each judge and order, in the order of the ballots."""
    found = []
    for judge, turn in dict.fromkeys((ballot.judge, ballot.turn) for ballot in ballots):
        votes = {
            pair: most_frequent(said)
            for (name, number, pair), said in samples.items()
            if (name, number) == (judge, turn)
        }
        ranks = _ranks({pair: vote for pair, vote in votes.items() if vote is not None}, count)
        own = [ballot for ballot in ballots if (ballot.judge, ballot.turn) == (judge, turn)]
        whole = len(ranks) == count
        found.append(
            Annotation(
                judge,
                tuple(ranks[index] for index in range(count)) if whole else None,
                "ai",
                order=None if own[0].scored else _order(own),
                reason="" if whole else next((ballot.reason for ballot in own if ballot.reason), "abstained"),
            )
        )
    return found


def _order(ballots: Sequence[Ballot]) -> tuple[int, ...]:
    """The order in which a turn shows the group; each ballot may show a part of it."""
    before = Counter(index for ballot in ballots for index in ballot.shown[:-1])
    members = {index for ballot in ballots for index in ballot.shown}
    if len(ballots[0].shown) == len(members):
        return ballots[0].shown
    return tuple(sorted(members, key=lambda index: -before[index]))
