"""Labelled items as groups: one ranking from several people, with every verdict kept."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import permutations
from statistics import median
from typing import TYPE_CHECKING, Any

from alignkit.preferences import Annotation, Share, stored_annotations, voted_ranks, with_annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alignkit import Group
    from alignkit_label.store import Item, Said, Store

SOURCE, ALL_BAD = "human", "all bad"


@dataclass(frozen=True, slots=True)
class Labelled:
    """What people have said so far.

    Attributes:
        groups: items with a ranking, in order.
        unjudged: ids of items that too few people have judged.
        left_out: annotators who got too few gold items right.
    """

    groups: list[Group]
    unjudged: list[str]
    left_out: list[str]

    @property
    def missing(self) -> int:
        """Number of items that too few people have judged."""
        return len(self.unjudged)

    @property
    def summary(self) -> str:
        """What is labelled and what is missing, in one line."""
        text = f"{len(self.groups)} of {len(self.groups) + self.missing} items labelled, {self.missing} missing"
        return text + (f"; dropped for wrong gold items: {', '.join(self.left_out)}" if self.left_out else "")


def labelled(
    store: Store,
    *,
    min_annotators: int = 1,
    min_gold: float = 0.0,
    with_gold: bool = False,
) -> Labelled:
    """Ranked groups of the items that enough people have judged.

    Args:
        min_gold: share of gold items that an annotator must get right to count.
        with_gold: include the gold items.
    """
    items, said = store.items(), store.said()
    shares = gold_shares(items, said)
    left_out = [name for name, share in shares.items() if share.value is not None and share.value < min_gold]
    by_item: dict[str, list[Said]] = defaultdict(list)
    for one in said:
        if one.annotator not in left_out:
            by_item[one.item].append(one)
    groups, unjudged = [], []
    for item in items:
        if item.gold is not None and not with_gold:
            continue
        if sum(one.ranks is not None for one in by_item[item.id]) >= min_annotators:
            groups.append(ranked(item.group, by_item[item.id]))
        else:
            unjudged.append(item.id)
    return Labelled(groups, unjudged, left_out)


def ranked(group: Group, said: Sequence[Said]) -> Group:
    """The group with these people's verdicts beside those of AIs; the ranks of several people come from a Bradley-Terry
    fit to all of theirs. `labels` are all false if most people found every response bad."""
    rankings = [one.ranks for one in said if one.ranks is not None]
    noted = [_annotation(one) for one in said]
    ranks = rankings[0] if len(rankings) == 1 else voted_ranks(noted, len(group.responses))
    bad = sum(one.verdict == "both_bad" for one in said)
    labels = (False,) * len(group.responses) if 2 * bad > len(rankings) else None
    whole = replace(group, ranks=ranks, labels=labels, source=SOURCE)
    return with_annotations(whole, [*stored_annotations(group), *noted])


def gold_shares(items: Iterable[Item], said: Iterable[Said]) -> dict[str, Share]:
    """The share of gold items that each annotator got right: every pair that gold orders, in the same order."""
    gold = {item.id: item.gold for item in items if item.gold is not None}
    seen: dict[str, list[bool]] = defaultdict(list)
    for one in said:
        known = gold.get(one.item)
        right = (
            known is not None
            and one.ranks is not None
            and all(one.ranks[i] < one.ranks[j] for i, j in permutations(range(len(known)), 2) if known[i] < known[j])
        )
        seen[one.annotator] += [right] if known is not None else []
    return {name: Share(sum(found), len(found)) for name, found in seen.items()}


def status(store: Store) -> dict[str, Any]:
    """Counts of items and verdicts; for each annotator: judged, skipped, left, median seconds, gold."""
    items, said, wanted = store.items(), store.said(), store.wanted()
    shares = gold_shares(items, said)
    judged: dict[str, int] = defaultdict(int)
    for one in said:
        judged[one.item] += one.ranks is not None
    people: dict[str, Any] = {}
    for name in dict.fromkeys([*store.annotators(), *(one.annotator for one in said)]):
        own = [one for one in said if one.annotator == name]
        seconds = [one.seconds for one in own if one.seconds is not None]
        progress = store.progress(name)
        people[name] = {
            "judged": sum(one.ranks is not None for one in own),
            "skipped": progress["skipped"],
            "left": progress["total"] - progress["done"] if name in store.annotators() else 0,
            "median_seconds": round(median(seconds), 2) if seconds else None,
            "gold_right": share.to_json() if (share := shares.get(name)) else None,
        }
    ordinary = [item for item in items if item.gold is None]
    return {
        "items": len(ordinary),
        "gold_items": len(items) - len(ordinary),
        "complete": sum(judged[item.id] >= wanted[item.id] for item in ordinary),
        "verdicts_wanted": sum(wanted[item.id] for item in ordinary),
        "verdicts": sum(min(judged[item.id], wanted[item.id]) for item in ordinary),
        "annotators": people,
    }


def _annotation(said: Said) -> Annotation:
    bad = ALL_BAD if said.verdict == "both_bad" else ""
    reason = ": ".join(filter(None, (bad, said.reason)))
    return Annotation(said.annotator, said.ranks, "human", said.shown, said.seconds, reason)
