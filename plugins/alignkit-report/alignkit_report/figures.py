"""The figures of `alignkit preferences report`: what a file of preferences holds and how far to trust it.

Imports no torch. Every figure is about verdicts on pairs; a ranking of K responses counts as its K (K - 1) / 2 pairs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit.preferences import (
    FIRST,
    SECOND,
    SHARE_OF_FIRST,
    TIE,
    Share,
    annotations_of,
    intransitive_cycles,
    normalized,
    wins_of,
)
from alignkit_report.audit import audit_figures, opening
from alignkit_report.people import agreement_figures
from alignkit_report.similar import SimilarTexts
from alignkit_report.verdicts import FLIPPED, collect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from alignkit import Group
    from alignkit_report.verdicts import Unit, Verdicts

    Figures = dict[str, Any]

MOST_COST = 1e15
LENGTH_RATIOS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
"""Bounds of the bins of the first response's length over the second's."""


def figures(groups: Sequence[Group], held_out: Sequence[Group] = (), audit: Sequence[Group] = ()) -> Figures:
    """All figures of a file, as JSON types; first what it opens with.

    Args:
        held_out: groups that should share no prompt with these.
        audit: people's verdicts on pairs of these groups, as `alignkit label export` writes them.

    Raises:
        InputError: the annotations of a record are malformed.
    """
    verdicts = collect([*groups, *audit])
    found = {
        "audit": audit_figures(verdicts),
        "counts": counts(groups),
        "annotators": {name: of_annotator(verdicts, name) for name in verdicts.kinds},
        "agreement": agreement_figures(verdicts),
        "position": {name: position_bias(verdicts, name) for name in verdicts.kinds},
        "length": {"ranks": length_bias(_ranked_pairs(groups))}
        | {name: length_bias(_settled_pairs(verdicts, name)) for name in verdicts.kinds},
        "contradictions": {name: contradictions(verdicts, name) for name in verdicts.kinds},
        "duplicates": duplicates(groups),
        "leakage": leakage(groups, held_out) if held_out else None,
        "cost": cost(groups, verdicts),
    }
    return {"opening": [*_without_preferences(groups), *opening(found)], **found}


def _without_preferences(groups: Sequence[Group]) -> list[str]:
    """What to say of records that hold nothing to learn from: other names of columns may be why."""
    if not groups or any(group.ranks or group.labels or group.scores or annotations_of(group) for group in groups):
        return []
    names = ", ".join(groups[0].prompt.meta)
    renamed = f" If {names} should count, rename: --columns OLD=chosen." if names else ""
    return [f"There are no preferences in it: no record is ranked, scored or labelled.{renamed}"]


def counts(groups: Sequence[Group]) -> Figures:
    """Groups by size and source, ordered and tied pairs in their ranks, and groups without ranks."""
    ordered = tied = 0
    for group in groups:
        ranks = group.ranks or ()
        ordered += len(group.preferred_pairs())
        tied += sum(a == b for a, b in combinations(ranks, 2))
    sizes = Counter(len(group.responses) for group in groups)
    return {
        "groups": len(groups),
        "prompts": len({group.prompt.key for group in groups}),
        "responses": {str(size): sizes[size] for size in sorted(sizes)},
        "sources": dict(Counter(group.source or "unknown" for group in groups).most_common()),
        "ordered_pairs": ordered,
        "tied_pairs": tied,
        "unranked_groups": sum(group.ranks is None for group in groups),
    }


def of_annotator(verdicts: Verdicts, name: str) -> Figures:
    """On how many pairs the annotator decided, tied and abstained, and the mean seconds per record."""
    seen = [unit.settled(name) for unit in verdicts.units if name in unit.judgements]
    said = Counter(seen)
    seconds = verdicts.seconds.get(name)
    return {
        "kind": verdicts.kinds[name],
        "pairs": len(seen),
        "first_better": said[FIRST],
        "second_better": said[SECOND],
        "ties": said[TIE],
        "abstained": said[None],
        "seconds": round(fmean(seconds), 2) if seconds else None,
    }


def position_bias(verdicts: Verdicts, name: str) -> Figures | None:
    """How often the response shown first wins, among decided looks with a known order; `bias` is that share minus one
    half. For pairs seen in both orders: how often the result was the same. None if no order is known."""
    firsts: list[bool] = []
    ties = 0
    by_order: dict[Any, dict[str, str]] = defaultdict(dict)
    for unit in verdicts.units:
        for look in unit.judgements.get(name, ()):
            if look.shown_first is None or look.verdict is None:
                continue
            if look.verdict == TIE:
                ties += 1
            else:
                firsts.append(look.verdict == look.shown_first)
            winner = "" if look.verdict == TIE else f"the better: {unit.responses[look.verdict - 1]}"
            by_order[unit.content][unit.responses[look.shown_first - 1]] = winner
    both = [set(winners.values()) for winners in by_order.values() if len(winners) == 2]
    if not firsts and not ties:
        return None
    share = Share(sum(firsts), len(firsts))
    return {
        "first_wins": share.to_json(),
        "bias": None if share.value is None else round(share.value - 0.5, 4),
        "ties": ties,
        "both_orders_agree": Share(sum(len(winners) == 1 for winners in both), len(both)).to_json(),
    }


def length_bias(pairs: Iterable[tuple[str, str, int]]) -> Figures | None:
    """How often the longer response (in characters) wins, and the first one's share of wins by ratio of lengths.

    Args:
        pairs: two responses, and 1 or 2 for the better one.
    """
    longer: list[bool] = []
    bins: list[list[bool]] = [[] for _ in range(len(LENGTH_RATIOS) + 1)]
    for first, second, verdict in pairs:
        ratio = (len(first) + 1) / (len(second) + 1)
        bins[sum(ratio > bound for bound in LENGTH_RATIOS)].append(verdict == FIRST)
        if len(first) != len(second):
            longer.append((len(first) > len(second)) == (verdict == FIRST))
    if not longer:
        return None
    by_ratio = [Share(sum(won), len(won)).to_json() for won in bins]
    return {"longer_wins": Share(sum(longer), len(longer)).to_json(), "first_wins_by_ratio": by_ratio}


def _ranked_pairs(groups: Iterable[Group]) -> Iterable[tuple[str, str, int]]:
    """Pairs that the ranks order, sorted by text, because a file may always list the better response first."""
    for group in groups:
        for better, worse in group.preferred_pairs():
            one, other = group.responses[better], group.responses[worse]
            yield (one, other, FIRST) if one < other else (other, one, SECOND)


def _settled_pairs(verdicts: Verdicts, name: str) -> Iterable[tuple[str, str, int]]:
    for unit in verdicts.units:
        verdict = unit.settled(name)
        if verdict is not None and verdict != TIE:
            yield (*unit.responses, verdict)


def contradictions(verdicts: Verdicts, name: str) -> Figures:
    """Pairs that the annotator judged more than once: how often the verdicts differ, and how often they are opposite.
    And prompts with three or more responses whose verdicts are intransitive."""
    looks: dict[Any, list[int]] = defaultdict(list)
    for unit in verdicts.units:
        flip = unit.responses != tuple(sorted(unit.responses))
        said = [look.verdict for look in unit.judgements.get(name, ()) if look.verdict is not None]
        looks[unit.content] += [FLIPPED[verdict] or TIE if flip else verdict for verdict in said]
    repeated = [set(said) for said in looks.values() if len(said) > 1]
    rankings, circles = _circles(verdicts.units, name)
    return {
        "repeated_pairs": len(repeated),
        "differing": sum(len(said) > 1 for said in repeated),
        "opposite": sum({FIRST, SECOND} <= said for said in repeated),
        "rankings": rankings,
        "intransitive": circles,
    }


def _circles(units: Iterable[Unit], name: str) -> tuple[int, int]:
    """How many prompts have three or more responses that the annotator compared, and how many of those a cycle."""
    by_prompt: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
    for unit in units:
        verdict = unit.settled(name)
        if verdict is not None:
            by_prompt[unit.prompt].append((*unit.responses, SHARE_OF_FIRST[verdict]))
    rankings = circles = 0
    for compared in by_prompt.values():
        places = {text: place for place, text in enumerate(dict.fromkeys(t for pair in compared for t in pair[:2]))}
        if len(places) > 2:
            rankings += 1
            distinct = [(places[a], places[b], share) for a, b, share in compared if a != b]
            circles += bool(intransitive_cycles(wins_of(distinct, len(places))))
    return rankings, circles


def duplicates(groups: Sequence[Group]) -> Figures:
    """Records with the same prompt and responses (ignoring case, space and punctuation), how many of them are ranked
    differently, and records that contain a response twice."""
    by_content: dict[Any, list[Mapping[str, int]]] = defaultdict(list)
    inside = 0
    for group in groups:
        texts = [normalized(response) for response in group.responses]
        inside += len(set(texts)) < len(texts)
        ranks = dict(zip(texts, group.ranks or (), strict=False))
        by_content[normalized(group.prompt.plain), frozenset(texts)].append(ranks)
    same = [rankings for rankings in by_content.values() if len(rankings) > 1]
    return {
        "repeated_records": sum(len(rankings) - 1 for rankings in same),
        "ranked_differently": sum(any(ranks != rankings[0] for ranks in rankings[1:]) for rankings in same),
        "same_response_twice": inside,
    }


def leakage(groups: Sequence[Group], held_out: Sequence[Group]) -> Figures:
    """Held-out prompts that are in the file too, exactly or nearly, and held-out responses that are."""
    prompts = SimilarTexts(group.prompt.plain for group in groups)
    responses = {normalized(response) for group in groups for response in group.responses}
    matches = {group.prompt.key: prompts.match(group.prompt.plain) for group in held_out}
    texts = {normalized(response) for group in held_out for response in group.responses if response.strip()}
    return {
        "held_out_prompts": len(matches),
        "same_prompt": sum(match == 1.0 for match in matches.values()),
        "similar_prompt": sum(0.0 < match < 1.0 for match in matches.values()),
        "held_out_responses": len(texts),
        "same_response": len(texts & responses),
    }


def cost(groups: Sequence[Group], verdicts: Verdicts) -> Figures:
    """Sums of the numbers in `meta.cost` (in an audit alone: what the audited labels cost), and each annotator's total
    seconds."""
    audits = [group.meta["audit"] for group in groups if isinstance(group.meta.get("audit"), dict)]
    total = total_cost(group.meta.get("cost") for group in groups) or total_cost(one.get("cost") for one in audits[:1])
    taken = {f"seconds of {name}": round(sum(seconds), 1) for name, seconds in verdicts.seconds.items()}
    return total | taken


def total_cost(spent: Iterable[Any]) -> Figures:
    """The sum of each number up to MOST_COST by its name; what is no mapping of numbers does not count."""
    total: dict[str, float] = defaultdict(float)
    for one in spent:
        for name, value in one.items() if isinstance(one, dict) else ():
            if type(value) in (int, float) and abs(value) <= MOST_COST:
                total[name] += value
    return {name: round(value, 6) for name, value in total.items()}
