"""Makes a ranking with ties from pairwise comparisons: the one that reproduces every verdict, or the best fit."""

from __future__ import annotations

from typing import Any

from alignkit.preferences import (
    FIRST,
    SECOND,
    SHARE_OF_FIRST,
    TIE,
    bradley_terry,
    compared_together,
    intransitive_cycles,
    ranks_of,
    wins_of,
)
from alignkit_data.messages import Unusable


def checked_verdict(verdict: Any, name: str) -> int:
    """A verdict on two responses: 0 tie, 1 the first is better, 2 the second. Raises ValueError for anything else."""
    if type(verdict) is not int or verdict not in (TIE, FIRST, SECOND):
        raise ValueError(f"{name} is {verdict!r}, expected 0 (tie), 1 (the first is better) or 2 (the second)")
    return verdict


def ranks_of_comparisons(comparisons: Any, count: int) -> tuple[int, ...]:
    """Ranks of `count` responses, 0 is best, from `[i, j, verdict]` entries.

    Responses that tie share a rank, also along chains of ties. So if a and b both tie with c, then a > b is as
    intransitive as a cycle of wins.

    Raises:
        ValueError: an entry does not compare two of the responses.
        Unusable: no ranking reproduces all verdicts, or more than one does.
    """
    entries = _checked(comparisons, count)
    tied = list(range(count))
    for first, second, verdict in entries:
        if verdict == TIE:
            old, new = tied[second], tied[first]
            tied = [new if member == old else member for member in tied]
    beats = {
        (tied[first], tied[second]) if verdict == FIRST else (tied[second], tied[first])
        for first, second, verdict in entries
        if verdict != TIE
    }
    order: list[int] = []
    remaining = set(tied)
    while remaining:
        unbeaten = [one for one in remaining if not any((other, one) in beats for other in remaining)]
        if not unbeaten:
            raise Unusable("intransitive comparisons")
        if len(unbeaten) > 1:
            raise Unusable("comparisons that leave the order open")
        order.append(unbeaten[0])
        remaining.remove(unbeaten[0])
    return tuple(order.index(member) for member in tied)


def fitted_ranks(comparisons: Any, count: int) -> tuple[tuple[int, ...], list[list[int]]]:
    """Ranks of `count` responses by a Bradley-Terry fit, and the cycles of majorities that no ranking reproduces.

    Raises:
        ValueError: an entry does not compare two of the responses.
        Unusable: some responses are not compared with the others, even indirectly.
    """
    wins = wins_of(((i, j, SHARE_OF_FIRST[verdict]) for i, j, verdict in _checked(comparisons, count)), count)
    if len(compared_together(wins)) > 1:
        raise Unusable("comparisons that leave the order open")
    return ranks_of(bradley_terry(wins)), [list(cycle) for cycle in intransitive_cycles(wins)]


def _checked(comparisons: Any, count: int) -> list[tuple[int, int, int]]:
    if not isinstance(comparisons, list):
        raise ValueError("pairwise is not a list of [i, j, verdict]")
    entries = []
    for entry in comparisons:
        if not (isinstance(entry, list) and len(entry) == 3 and all(type(number) is int for number in entry[:2])):
            raise ValueError(f"pairwise holds {entry!r}, expected [i, j, verdict]")
        first, second, verdict = entry
        if first == second or not (0 <= first < count and 0 <= second < count):
            raise ValueError(f"pairwise holds {entry!r}, expected two of the responses 0 to {count - 1}")
        entries.append((first, second, checked_verdict(verdict, f"the verdict of {entry!r}")))
    return entries
