"""Verdicts on pairs of responses, by annotator, from the annotations and ranks of many records. Imports no torch.

A unit is two responses to one prompt that somebody judged. Records with the same two responses share a unit: one
annotator's file after another's gives units that both judged. An annotator who judges a pair again in a later record
opens a second unit, so that no verdict counts twice and the two can be compared. Only an audit, which repeats the
audited file's verdicts, adds nothing but new annotators.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from alignkit import InputError
from alignkit.preferences import FIRST, SECOND, TIE, annotations_of, most_frequent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alignkit import Group
    from alignkit.preferences import Annotation, Kind

FLIPPED = {None: None, TIE: TIE, FIRST: SECOND, SECOND: FIRST}
"""A verdict, or a place, with the two responses swapped."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One look of an annotator at a unit.

    Attributes:
        verdict: 0 tie, 1 the unit's first response is better, 2 the second; None for an abstention.
        shown_first: which of the two was shown first, 1 or 2; None if unknown.
    """

    verdict: int | None
    shown_first: int | None


@dataclass(slots=True)
class Unit:
    """Two responses to a prompt, in the order of their first record, and each annotator's verdicts on them.

    Attributes:
        audited: whether it was drawn at random for people (`meta.audit`).
        unsure: whether a mixture asks people only where AIs are unsure, as here (`meta.mix.rule`).
    """

    prompt: str
    responses: tuple[str, str]
    judgements: dict[str, list[Judgement]] = field(default_factory=dict)
    audited: bool = False
    unsure: bool = False

    @property
    def content(self) -> tuple[str, frozenset[str]]:
        """The same for units of the same prompt and responses."""
        return self.prompt, frozenset(self.responses)

    def verdicts_of(self, annotator: str) -> list[int | None]:
        """The annotator's verdicts, one for each look."""
        return [look.verdict for look in self.judgements.get(annotator, ())]

    def said_by(self, annotators: Iterable[str]) -> list[int]:
        """What these annotators say, without abstentions."""
        return [verdict for annotator in annotators if (verdict := self.settled(annotator)) is not None]

    def settled(self, annotator: str) -> int | None:
        """The annotator's most frequent verdict; a tie if two are equally frequent, None if the annotator abstained or
        hasn't seen the unit."""
        verdicts = [verdict for verdict in self.verdicts_of(annotator) if verdict is not None]
        if len(verdicts) < 2:
            return verdicts[0] if verdicts else None
        found = most_frequent(verdicts)
        return TIE if found is None else found

    def majority(self, annotators: Iterable[str]) -> int | None:
        """The verdict of most of these annotators; None if two are equally frequent."""
        return most_frequent(self.settled(annotator) for annotator in annotators)


@dataclass(slots=True)
class Verdicts:
    """All units, the annotators' kinds, their seconds for each record, and their ranks of each response.

    Attributes:
        ranks: (prompt, all responses, response) -> annotator -> rank. An annotator's last ranking counts.
    """

    units: list[Unit] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ranks: dict[tuple[str, frozenset[str], str], dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def of_kind(self, kind: Kind) -> list[str]:
        return [annotator for annotator, known in self.kinds.items() if known == kind]


def collect(groups: Iterable[Group]) -> Verdicts:
    """The verdicts of all groups.

    Raises:
        InputError: a group's annotations are malformed; names the record by its number.
    """
    found = Verdicts()
    by_content: dict[tuple[str, frozenset[str]], list[Unit]] = defaultdict(list)
    for number, group in enumerate(groups, start=1):
        try:
            annotations = annotations_of(group)
        except ValueError as error:
            raise InputError(
                str(error), where=f"record {number}", fix="docs/reference/data.md describes meta.annotations"
            ) from error
        for annotation in annotations:
            found.kinds[annotation.annotator] = found.kinds.get(annotation.annotator) or annotation.kind
            if annotation.seconds is not None:
                found.seconds[annotation.annotator].append(annotation.seconds)
        for text, by in _ranks(group, annotations):
            found.ranks[group.prompt.key, frozenset(group.responses), text] |= by
        mix = group.meta.get("mix")
        unsure, audited = isinstance(mix, dict) and mix.get("rule") == "unsure", "audit" in group.meta
        for first, second in combinations(range(len(group.responses)), 2) if annotations else ():
            pair = Unit(group.prompt.key, (group.responses[first], group.responses[second]))
            names = {annotation.annotator for annotation in annotations}
            unit = _unit_for(pair, set() if audited else names, by_content[pair.content])
            if unit is pair:
                found.units.append(unit)
            unit.audited, unit.unsure = unit.audited or audited, unit.unsure or unsure
            new = names - unit.judgements.keys()
            for annotation in annotations:
                if annotation.annotator in new:
                    looks = unit.judgements.setdefault(annotation.annotator, [])
                    looks.append(_judgement(annotation, first, second, flipped=unit.responses != pair.responses))
    return found


def _ranks(group: Group, annotations: Iterable[Annotation]) -> Iterable[tuple[str, dict[str, int]]]:
    """(response, annotator -> rank) of a ranking of three or more; rankings in several orders count by their sums."""
    if len(group.responses) < 3:
        return
    own: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for annotation in annotations:
        if annotation.ranks is not None:
            own[annotation.annotator].append(annotation.ranks)
    sums = {name: [sum(ranks) for ranks in zip(*looks, strict=True)] for name, looks in own.items()}
    for place, text in enumerate(group.responses):
        yield text, {name: sorted(set(row)).index(row[place]) for name, row in sums.items()}


def _unit_for(pair: Unit, annotators: set[str], known: list[Unit]) -> Unit:
    """The first unit of the same content that none of the annotators has judged, or the pair as a new one."""
    for unit in known:
        if not annotators & unit.judgements.keys():
            return unit
    known.append(pair)
    return pair


def _judgement(annotation: Annotation, first: int, second: int, *, flipped: bool) -> Judgement:
    verdict = annotation.verdict(first, second)
    shown = None
    if annotation.order is not None:
        shown = FIRST if annotation.order.index(first) < annotation.order.index(second) else SECOND
    return Judgement(FLIPPED[verdict], FLIPPED[shown]) if flipped else Judgement(verdict, shown)
