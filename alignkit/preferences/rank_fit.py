"""A ranking of K responses from scores, or from comparisons: a Bradley-Terry fit, and contradictions.

The fit uses the minorisation-maximisation steps of Hunter 2004 (Ann. Statist. 32(1), 384-406, section 2). Deliberately
different: a tie is half a win for each side, and a small prior (a rival of strength 1 against which every response wins
and loses `prior` times, in effect the gamma prior of Caron and Doucet 2012, arXiv:1011.1761) keeps the strengths finite
if a response wins or loses every comparison. Imports no torch.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from alignkit.preferences.annotations import FIRST, SECOND, TIE, Annotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from alignkit.records import Group

    Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)
MAX_STEPS = 10_000
TOLERANCE = 1e-9
SAME_STRENGTH = 1e-6
"""Log-strengths this close share a rank."""
SHARE_OF_FIRST = {TIE: 0.5, FIRST: 1.0, SECOND: 0.0}
"""Verdict -> share of the comparison that the first response won."""


def ranked_by_scores(groups: Sequence[Group], rows: Sequence[Sequence[float | None]], *, source: str) -> list[Group]:
    """The groups with scores and ranks; drops groups without two different scores, and logs how many.

    Args:
        rows: a score per response of each group; None for an abstention.
        source: the groups' new `source`.
    """
    ranked = [
        replace(group, scores=tuple(scores), source=source).ranked_by_scores()
        for group, scores in zip(groups, rows, strict=True)
        if len({score for score in scores if score is not None}) > 1
    ]
    if len(ranked) < len(groups):
        dropped, abstained = len(groups) - len(ranked), sum(score is None for scores in rows for score in scores)
        said = f" (no score for {abstained} responses)" if abstained else ""
        logger.warning("%d of %d prompts dropped: all their responses score the same%s", dropped, len(groups), said)
    return ranked


def wins_of(verdicts: Iterable[tuple[int, int, float]], count: int) -> Floats:
    """[K, K] wins of row over column.

    Args:
        verdicts: (i, j, share), where share is 1 if response i won, 0 if it lost, 0.5 for a tie.

    Raises:
        ValueError: a verdict is not on two of the K responses, or its share is not in [0, 1].
    """
    import numpy as np  # not above: `plugins list` reads the options that lead here

    wins = np.zeros((count, count))
    for first, second, share in verdicts:
        if first == second or not (0 <= first < count and 0 <= second < count) or not 0 <= share <= 1:
            raise ValueError(f"({first}, {second}, {share}) is not a comparison of two of {count} responses")
        wins[first, second] += share
        wins[second, first] += 1 - share
    return wins


def bradley_terry(wins: Floats, *, prior: float = 0.1) -> Floats:
    """[K] log-strengths with mean 0 that maximise the likelihood of the wins, P(i beats j) = sigmoid(s_i - s_j).

    Args:
        wins: [K, K], from `wins_of`.
        prior: wins and losses of each response against a rival of log-strength 0; above 0, unless wins connect all
            responses both ways.
    """
    import numpy as np

    games = wins + wins.T
    won = wins.sum(axis=1) + prior
    strength = np.ones(len(wins))
    for _ in range(MAX_STEPS):
        against = games / (strength[:, None] + strength[None, :])
        updated: Floats = won / (against.sum(axis=1) + 2 * prior / (strength + 1))
        moved = np.abs(np.log(updated) - np.log(strength)).max(initial=0.0)
        strength = updated
        if moved < TOLERANCE:
            break
    logs: Floats = np.log(strength)
    return logs - logs.mean() if len(logs) else logs


def ranks_of(strengths: Floats) -> tuple[int, ...]:
    """Ranks from 0 (best); a response within SAME_STRENGTH of the one ranked before it ties with it."""
    order = (-strengths).argsort(kind="stable")
    ranks = [0] * len(strengths)
    for place, (before, index) in enumerate(pairwise(order), start=1):
        ranks[index] = ranks[before] if strengths[before] - strengths[index] <= SAME_STRENGTH else place
    return tuple(ranks)


def voted_ranks(annotations: Iterable[Annotation], count: int) -> tuple[int, ...] | None:
    """Ranks of a Bradley-Terry fit to all annotators' verdicts on pairs of K responses; None if all abstained."""
    wins = wins_of(
        (
            (i, j, SHARE_OF_FIRST[verdict])
            for one in annotations
            for i, j in combinations(range(count), 2)
            if (verdict := one.verdict(i, j)) is not None
        ),
        count,
    )
    return ranks_of(bradley_terry(wins)) if wins.any() else None


def compared_together(wins: Floats) -> list[list[int]]:
    """The sets of responses that comparisons connect, largest first; no ranking holds across sets."""
    import networkx as nx

    sets = nx.connected_components(nx.from_numpy_array(wins + wins.T > 0))
    return sorted(map(sorted, sets), key=lambda members: (-len(members), members))


def intransitive_cycles(wins: Floats) -> list[tuple[int, ...]]:
    """Cycles of strict majorities (i beats j beats ... beats i): a shortest one through each member, without repeats,
    each from its lowest index. If there are none, some ranking agrees with every majority."""
    import networkx as nx

    beats = nx.from_numpy_array(wins > wins.T, create_using=nx.DiGraph)
    found = set()
    for start in beats:
        paths = nx.single_source_shortest_path(beats, start)
        cycle = next((path for last, path in paths.items() if beats.has_edge(last, start)), None)
        if cycle:
            lowest = cycle.index(min(cycle))
            found.add((*cycle[lowest:], *cycle[:lowest]))
    return sorted(found, key=lambda cycle: (len(cycle), cycle))
