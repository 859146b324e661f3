"""A question to a judge and its answer, for all protocols."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit_judge.options import Protocol

LABELS = "ABCDEFGHI"
LOWEST, HIGHEST = 1, 10
"""The scale of scores."""


def digest(value: Any) -> str:
    """sha256 of JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    """

    values: tuple[float, ...] | None
    reason: str = ""
    reasoning: str = ""
    final: bool = True
    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Answer:
        """A stored answer, with its original cost."""
        values = record["values"]
        return cls(**{**record, "values": None if values is None else tuple(values)})
