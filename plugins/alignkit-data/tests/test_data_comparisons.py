"""Pairwise verdicts become the one ranking that reproduces all of them, or none."""

from __future__ import annotations

from typing import Any

import pytest
from alignkit_data.comparisons import fitted_ranks, ranks_of_comparisons
from alignkit_data.loading import GroupMaker
from alignkit_data.messages import Unusable
from alignkit_data.readers import Row


@pytest.mark.parametrize(
    ("comparisons", "ranks"),
    [
        ([[0, 1, 1], [0, 2, 1], [1, 2, 1]], (0, 1, 2)),
        ([[0, 1, 2], [0, 2, 2], [1, 2, 2]], (2, 1, 0)),
        ([[0, 1, 0], [0, 2, 2], [1, 2, 2]], (1, 1, 0)),
        ([[2, 0, 1], [1, 0, 0], [2, 1, 1]], (1, 1, 0)),
        ([[0, 1, 0], [0, 2, 0], [1, 2, 0]], (0, 0, 0)),
        ([[0, 1, 1], [1, 2, 1]], (0, 1, 2)),
        ([[0, 1, 1], [1, 2, 0]], (0, 1, 1)),
    ],
)
def test_rankings(comparisons: list[list[int]], ranks: tuple[int, ...]) -> None:
    assert ranks_of_comparisons(comparisons, 3) == ranks


@pytest.mark.parametrize(
    ("comparisons", "reason"),
    [
        ([[0, 1, 1], [1, 2, 1], [0, 2, 2]], "intransitive"),
        ([[0, 1, 0], [1, 2, 0], [0, 2, 1]], "intransitive"),
        ([[0, 1, 1], [1, 0, 1], [0, 2, 1], [1, 2, 1]], "intransitive"),
        ([[0, 1, 1], [0, 2, 1]], "leave the order open"),
        ([], "leave the order open"),
    ],
)
def test_verdicts_that_give_no_ranking(comparisons: list[list[int]], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        ranks_of_comparisons(comparisons, 3)


@pytest.mark.parametrize(
    "comparisons",
    [None, [[0, 1]], [[0, 3, 1]], [[-1, 1, 1]], [[1, 1, 1]], [[0, 1, 3]], [["0", 1, 1]], [[0, 1, None]]],
)
def test_malformed_comparisons(comparisons: Any) -> None:
    with pytest.raises(ValueError, match=r"pairwise|verdict"):
        ranks_of_comparisons(comparisons, 3)


@pytest.mark.parametrize(
    ("pairwise", "ranks", "circles"),
    [
        ([[0, 1, 1], [1, 2, 1], [2, 0, 1]], (0, 0, 0), [[0, 1, 2]]),
        ([[0, 1, 1], [1, 2, 1], [2, 0, 1], [0, 2, 1], [0, 2, 1]], (0, 1, 2), []),
        ([[0, 1, 0], [1, 2, 0], [0, 2, 2]], (2, 1, 0), []),
        ([[0, 2, 2], [0, 1, 2]], (2, 0, 0), []),
    ],
)
def test_a_fit_ranks_what_no_ranking_reproduces(
    pairwise: list[list[int]], ranks: tuple[int, ...], circles: list[list[int]]
) -> None:
    """A cycle ties; two more wins decide it; in a chain of ties the one verdict decides; two winners that were never
    compared with each other tie."""
    assert fitted_ranks(pairwise, 3) == (ranks, circles)
    row = {"prompt": "Hi?", "responses": ["a", "b", "c"], "pairwise": pairwise}
    maker = GroupMaker(fit_comparisons=True)
    (group,) = maker.groups([Row("data.jsonl:7", row)])
    assert (group.ranks, group.meta.get("cycles", [])) == (ranks, circles)
    assert ("intransitive 1: ranked by the fit" in maker.detected().render()) == bool(circles)


def test_a_fit_needs_all_responses_compared() -> None:
    with pytest.raises(Unusable, match="leave the order open"):
        fitted_ranks([[0, 1, 1]], 3)
