"""A question to a judge and its answer, whatever the protocol."""

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
    """What a judge is asked once.

    Attributes:
        responses: in the order in which they are shown; two, all K, or one for a score.
        criterion: what is judged.
        reasoning: whether the judge reasons before its verdict.
        sample: number of the sample; otherwise equal questions with other numbers are asked again.
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
        """Digest of what is judged, whatever the order."""
        return digest([self.prompt, sorted(self.responses)])

    @property
    def order(self) -> str:
        """The order in which the responses are shown, relative to their sorted one."""
        ordered = sorted(self.responses)
        return ",".join(str(ordered.index(response)) for response in self.responses)

    @property
    def nonce(self) -> str:
        """16 hexadecimal digits that stand in none of the texts: who writes a response can't know what they will be."""
        texts = [self.prompt, *self.responses]
        for attempt in range(1000):
            nonce = digest([attempt, *texts])[:16]
            if not any(nonce in text for text in texts):
                return nonce
        raise AssertionError("unreachable: a thousand digests stand in the texts")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge said to a question.

    Attributes:
        values: one number a response as shown, higher is better; None: it abstained. Of a pair or a ranking they are in
            proportion to the chances of being the better one, of a score they are the score.
        reason: why it abstained, in a few words.
        reasoning: what it wrote before its verdict.
        final: False where the question was not answered at all, so that it is asked again in the next run.
        requests: replies that were paid for it.
        tokens: of the questions and replies.
        money: what they cost.
    """

    values: tuple[float, ...] | None
    reason: str = ""
    reasoning: str = ""
    final: bool = True
    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it, to be kept."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Answer:
        """A kept answer, with what it cost when it was given."""
        values = record["values"]
        return cls(**{**record, "values": None if values is None else tuple(values)})
