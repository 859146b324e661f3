"""Turns a server's reply into a verdict: one JSON object that fits a schema and repeats the item's nonce, or nothing.

So a judge that copies text from a response never gives a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from math import exp
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from alignkit_judge.questions import HIGHEST, LOWEST, Answer

if TYPE_CHECKING:
    from alignkit_judge.options import Protocol
    from alignkit_judge.questions import Question

_VERDICT: dict[Protocol, tuple[str, Any]] = {
    "pairwise": ("verdict", Literal["A", "B", "tie", "abstain"]),
    "listwise": ("ranking", list[list[str]]),
    "pointwise": ("score", Annotated[int, Field(ge=LOWEST, le=HIGHEST)] | None),
}
_PAIR = {"A": (1.0, 0.0), "B": (0.0, 1.0), "tie": (0.5, 0.5)}
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n```$", re.DOTALL)
_SCORE = re.compile(r'"score"\s*:\s*(\d+)')
LEAD = 1000.0
"""A ranking gives no probabilities: each place counts as this many times as likely as the next one."""
LEAST_MASS = 0.5
"""The expected score counts only if the known alternatives have at least this share of the probability."""
MOST_LOGPROB = 1e-3
"""A log-probability is at most 0, give or take rounding; servers also send NaN and null."""
_SCORES = frozenset(map(str, range(LOWEST, HIGHEST + 1)))

Alternatives = Sequence[tuple[str, Sequence[tuple[str, float]]]]
"""Each token of a reply, with the likeliest tokens at its place and their log-probabilities."""


class Malformed(ValueError):  # noqa: N818
    """The reply is not a verdict on this question."""


@cache
def reply_model(protocol: Protocol, reasoning: bool) -> type[BaseModel]:
    """The schema of a reply."""
    name, kind = _VERDICT[protocol]
    fields: dict[str, Any] = {"id": (str, ...)}
    if reasoning:
        fields["reasoning"] = (str, ...)
    fields[name] = (kind, ...)
    return create_model("Reply", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def parse_reply(text: str, question: Question, alternatives: Alternatives = ()) -> Answer:
    """The answer in a reply.

    Args:
        alternatives: to the reply's tokens, if the server gives them; then the score is the expected one.

    Raises:
        Malformed: it does not fit the schema, or is about another item.
    """
    stripped = _THOUGHTS.sub("", text).strip()
    if fenced := _FENCE.match(stripped):
        stripped = fenced[1].strip()
    try:
        reply = reply_model(question.protocol, question.reasoning).model_validate_json(stripped)
    except ValidationError as error:
        raise Malformed(f"does not fit the schema ({error.errors(include_input=False)[0]['msg']})") from error
    except ValueError as error:
        raise Malformed(f"is no text ({error})") from error
    said = reply.model_dump()
    if said["id"] != question.nonce:
        raise Malformed("does not repeat the item's id")
    verdict = said[_VERDICT[question.protocol][0]]
    values = _values(verdict, question)
    if values is not None and question.protocol == "pointwise" and alternatives:
        values = (expected_score(text, int(verdict), alternatives),)
    return Answer(values, "" if values else "abstained", said.get("reasoning", ""))


def _values(verdict: Any, question: Question) -> tuple[float, ...] | None:
    if question.protocol == "pairwise":
        return _PAIR.get(verdict)
    if question.protocol == "pointwise":
        return None if verdict is None else (float(verdict),)
    if not verdict:
        return None
    if sorted(label for tied in verdict for label in tied) != list(question.labels) or not all(verdict):
        raise Malformed("the ranking does not name each response once")
    place = {label: place for place, tied in enumerate(verdict) for label in tied}
    return tuple(LEAD ** -place[label] for label in question.labels)


def expected_score(text: str, score: int, alternatives: Alternatives) -> float:
    """The mean of the scores that the judge might have given, weighted by probability; the score itself if the
    alternatives are not whole scores or have less than half of the probability."""
    found = list(_SCORE.finditer(text))
    tokens = [token for token, _ in alternatives]
    if not found or not all(isinstance(token, str) for token in tokens) or "".join(tokens) != text:
        return float(score)
    place = 0
    for token, others in alternatives:
        if place <= found[-1].start(1) < place + len(token):
            if token.strip() != str(score):
                break
            known = [(int(other), logprob) for other, logprob in others if _is_score(other)]
            if not all(isinstance(logprob, int | float) and logprob <= MOST_LOGPROB for _, logprob in known):
                break
            chances = [(value, exp(logprob)) for value, logprob in known]
            mass = sum(chance for _, chance in chances)
            return sum(value * chance for value, chance in chances) / mass if mass >= LEAST_MASS else float(score)
        place += len(token)
    return float(score)


def _is_score(token: Any) -> bool:
    return isinstance(token, str) and token.strip() in _SCORES
