"""Rankings from scores."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.records import Group

logger = logging.getLogger(__name__)


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
