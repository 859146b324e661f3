"""A question to a judge and its answer, for all protocols."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit_judge.options import Protocol

LABELS = "ABCDEFGHI"
LOWEST, HIGHEST = 1, 10
"""The scale of scores."""
MALFORMED, CUT_OFF = "malformed", "cut off"
"""Reasons for no verdict: the reply can't be read, or it reached `reply_tokens` before its verdict."""


def digest(value: Any) -> str:
    """sha256 of JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Form:
    """What a reply must fit: the question's protocol, its nonce and a letter for each response."""

    protocol: Protocol
    nonce: str
    labels: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a judge.

    Attributes:
        responses: in the order shown; two, all K, or one to be scored.
        criterion: what to judge by.
        reasoning: whether the judge reasons before its verdict.
        sample: number of the sample; the same question with another number is asked again.
    """

    protocol: Protocol
    prompt: str
    responses: tuple[str, ...]
    criterion: str
    reasoning: bool = False
    sample: int = 0

    @property
    def labels(self) -> str:
        """A letter for each response, as shown."""
        return LABELS[: len(self.responses)]

    @property
    def item(self) -> str:
        """Digest of what is judged, independent of the order."""
        return digest([self.prompt, sorted(self.responses)])

    @property
    def order(self) -> str:
        """The order in which the responses are shown, relative to their sorted order."""
        ordered = sorted(self.responses)
        return ",".join(str(ordered.index(response)) for response in self.responses)

    @property
    def nonce(self) -> str:
        """16 hexadecimal digits that occur in none of the texts: the author of a response can't know them."""
        texts = [self.prompt, *self.responses]
        for attempt in range(1000):
            nonce = digest([attempt, *texts])[:16]
            if not any(nonce in text for text in texts):
                return nonce
        raise AssertionError("unreachable: the texts contain a thousand digests")


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's answer to a question.

    Attributes:
        values: one number for each response, in the order shown, higher is better; None if the judge abstained. For a
            pair or a ranking they are in proportion to the chance of being the better one; for a score, the score.
        reason: why it abstained, in a few words.
        reasoning: what it wrote before its verdict.
        final: False if the question got no answer, so that the next run asks it again.
        requests: paid replies.
        tokens: of the questions and replies.
        money: their cost.
        reply: the raw reply, if it was no verdict or `keep_replies` is set.
    """

    values: tuple[float, ...] | None
    reason: str = ""
    reasoning: str = ""
    final: bool = True
    requests: int = 0
    tokens: int = 0
    money: float = 0.0
    reply: str = ""

    @property
    def unusable(self) -> bool:
        """Whether the judge replied, but with no verdict: malformed or cut off."""
        return self.values is None and self.reason.startswith((MALFORMED, CUT_OFF))

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Answer:
        """A stored answer, with its original cost."""
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        values = record["values"]
        return cls(**{**known, "values": None if values is None else tuple(values)})
