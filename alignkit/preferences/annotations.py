"""Annotations: the verdicts behind a group's ranks, stored in `meta["annotations"]`. Imports no torch.

Training uses a group's ranks. If they come from several annotators, from both orders of a judge or from AI and people,
the record keeps each verdict, so that agreement and bias can be measured later (`alignkit preferences report`).
docs/reference/data.md describes the field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignkit.records import FIELD, Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


Kind = Literal["human", "ai", ""]
TIE, FIRST, SECOND = 0, 1, 2
LONGEST_SECONDS = 1e9
RANKS_OF_VERDICT: dict[int, tuple[int, int]] = {TIE: (0, 0), FIRST: (0, 1), SECOND: (1, 0)}
"""Verdict -> ranks of a pair: 0 tie, 1 the first is better, 2 the second."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotator's judgement of a group. A judge that sees both orders gives two.

    Attributes:
        annotator: its name, the same on every record.
        ranks: one integer per response, in the record's order; 0 is best, ties share a rank. None if the annotator
            abstained.
        kind: "human", "ai", or "" if unknown.
        order: indices of the responses in the order shown; None if unknown.
        seconds: time taken.
        reason: for the verdict or abstention, in the annotator's words.
    """

    annotator: str
    ranks: tuple[int, ...] | None
    kind: Kind = ""
    order: tuple[int, ...] | None = None
    seconds: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"an annotation's kind must be 'human', 'ai' or '', found {self.kind!r}")
        if self.ranks is not None and not all(type(rank) is int and rank >= 0 for rank in self.ranks):
            raise ValueError(f"an annotation's ranks must be integers from 0 (best), found {list(self.ranks)}")
        if self.order is not None and sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"an annotation's order must list each response once, found {list(self.order)}")
        seconds = self.seconds
        if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < LONGEST_SECONDS):
            raise ValueError(f"an annotation's seconds must be a number from 0, found {seconds!r}")
        if not (isinstance(self.annotator, str) and isinstance(self.reason, str)):
            raise ValueError("an annotation's annotator and reason must be texts")

    def verdict(self, first: int, second: int) -> int | None:
        """The verdict on two responses, by index: 0 tie, 1 `first` is better, 2 `second`; None if the annotator
        abstained."""
        if self.ranks is None:
            return None
        a, b = self.ranks[first], self.ranks[second]
        return TIE if a == b else FIRST if a < b else SECOND

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, without unknown fields; an abstention has null ranks."""
        record: dict[str, Any] = {"annotator": self.annotator, "ranks": list(self.ranks) if self.ranks else None}
        order = None if self.order is None else list(self.order)
        more = {"kind": self.kind, "order": order, "seconds": self.seconds, "reason": self.reason}
        return record | {name: value for name, value in more.items() if value not in (None, "")}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Annotation:
        """The annotation of a JSON record. Raises ValueError, KeyError or TypeError if it is not one."""
        ranks, order = record.get("ranks"), record.get("order")
        return cls(
            annotator=str(record["annotator"]),
            ranks=None if ranks is None else tuple(ranks),
            kind=record.get("kind", ""),
            order=None if order is None else tuple(order),
            seconds=record.get("seconds"),
            reason=record.get("reason", ""),
        )


def annotations_of(group: Group) -> list[Annotation]:
    """The annotations of a group; if it has only ranks, one annotation in its source's name.

    Raises:
        ValueError: the field holds something else, or not one rank per response.
    """
    listed = group.meta.get(FIELD)
    if listed is None:
        return [Annotation(group.source, group.ranks)] if group.ranks is not None and group.source else []
    try:
        found = [Annotation.from_json(record) for record in listed]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"meta.{FIELD} is not a list of {{annotator, ranks}} ({type(error).__name__}: {error})"
        ) from error
    for annotation in found:
        for name, values in (("ranks", annotation.ranks), ("order", annotation.order)):
            if values is not None and len(values) != len(group.responses):
                raise ValueError(f"{len(values)} {name} by {annotation.annotator} for {len(group.responses)} responses")
    return found


def stored_annotations(group: Group) -> list[Annotation]:
    """The annotations that the record itself holds; none if the field holds something else."""
    try:
        return annotations_of(group) if FIELD in group.meta else []
    except ValueError:
        return []


def with_annotations(group: Group, annotations: Iterable[Annotation]) -> Group:
    """The group with its annotations replaced by these."""
    return replace(group, meta={**group.meta, FIELD: [annotation.to_json() for annotation in annotations]})
