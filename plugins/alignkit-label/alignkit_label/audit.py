"""An audit: random pairs that AIs judged, for people to judge without seeing the AIs' verdicts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from alignkit_report.figures import total_cost

from alignkit.preferences import FIELD, stored_annotations
from alignkit_label.store import AUDIT, item_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignkit import Group


def drawn(groups: Sequence[Group], count: int, seed: int) -> tuple[list[Group], int]:
    """(random pairs, how many pairs there are): uniform over the different pairs of responses that AIs judged, ties and
    abstentions included.

    The pairs are in a random order that depends on the seed and each pair's content alone, so that what people have
    judged so far is a random sample too, and a larger draw contains a smaller one.
    """
    pairs = {item_id(pair): pair for group in groups for pair in _pairs(group)}
    order = sorted(pairs, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())[:count]
    mark: dict[str, Any] = {"seed": seed, "drawn": len(order), "of": len(pairs)}
    mark["cost"] = total_cost(group.meta.get("cost") for group in groups)
    return [replace(pairs[key], meta={**pairs[key].meta, AUDIT: mark}) for key in order], len(pairs)


def _pairs(group: Group) -> Iterator[Group]:
    """Every two responses of a group as a group, with the AIs' verdicts on them."""
    once = group.without_duplicates()
    if all(one.kind != "ai" for one in stored_annotations(once)):
        return
    for pair in combinations(range(len(once.responses)), 2):
        two = once.choose(pair)
        yield replace(two, ranks=None, scores=None, labels=None, meta={FIELD: two.meta[FIELD]})
