"""Turns a server's reply into a verdict: reads leniently, decides strictly.

Thoughts, fences, prose, letter case and extra keys don't matter. What matters: a JSON object that repeats the item's
nonce and holds a verdict, and no second one that says something else. So a judge that copies text from a response never
gives a verdict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from math import exp
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from alignkit_judge.questions import HIGHEST, LOWEST, Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit_judge.options import Protocol
    from alignkit_judge.questions import Form, Question

_VERDICT: dict[Protocol, tuple[str, Any]] = {
    "pairwise": ("verdict", Literal["A", "B", "tie", "abstain"]),
    "listwise": ("ranking", list[list[str]]),
    "pointwise": ("score", Annotated[int, Field(ge=LOWEST, le=HIGHEST)] | None),
}
_PAIR = {"A": (1.0, 0.0), "B": (0.0, 1.0), "TIE": (0.5, 0.5), "ABSTAIN": None}
_THOUGHTS_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THOUGHTS_BEGIN = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_OBJECT_BEGINS = re.compile(r'\{\s*"')
_WHOLE = re.compile(r"(\d{1,2})(?:\.0+)?(?:\s*/\s*10)?")
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
    """The schema of a reply, for servers that enforce one."""
    name, kind = _VERDICT[protocol]
    fields: dict[str, Any] = {"id": (str, ...)}
    if reasoning:
        fields["reasoning"] = (str, ...)
    fields[name] = (kind, ...)
    return create_model("Reply", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def parse_reply(text: str, question: Question | Form, alternatives: Alternatives = ()) -> Answer:
    """The answer in a reply.

    Args:
        alternatives: to the reply's tokens, if the server gives them; then the score is the expected one.

    Raises:
        Malformed: it holds no verdict on this item, or two that differ.
    """
    name = _VERDICT[question.protocol][0]
    own = [said for said in _objects(text) if str(said.get("id")).strip().lower() == question.nonce and name in said]
    if not own:
        raise Malformed(f"no JSON object has the item's id and a {name}")
    values = _values(own[0][name], question)
    if any(_values(said[name], question) != values for said in own[1:]):
        raise Malformed("two verdicts differ")
    if values is not None and question.protocol == "pointwise" and alternatives:
        values = (expected_score(text, int(values[0]), alternatives),)
    reasoning = own[0].get("reasoning", "")
    return Answer(values, "" if values else "abstained", reasoning if isinstance(reasoning, str) else "")


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a reply, without those in its thoughts."""
    with suppress(ValueError, RecursionError):
        whole = _DECODER.decode(text.strip())
        if isinstance(whole, dict):
            yield whole
            return
    text = _THOUGHTS_BEGIN.split(_THOUGHTS_END.split(text)[-1])[0]
    place = 0
    while begins := _OBJECT_BEGINS.search(text, place):
        try:
            found, place = _DECODER.raw_decode(text, begins.start())
            yield found
        except ValueError:
            place = begins.end()
        except RecursionError:
            return


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)


def _values(verdict: Any, question: Question | Form) -> tuple[float, ...] | None:
    if question.protocol == "pairwise":
        word = _label(verdict)
        if word not in _PAIR:
            raise Malformed("the verdict is none of A, B, tie and abstain")
        return _PAIR[word]
    if question.protocol == "pointwise":
        return None if verdict is None else (float(_score(verdict)),)
    if not isinstance(verdict, list):
        raise Malformed("the ranking is no list")
    places = [[_label(label) for label in (tied if isinstance(tied, list) else [tied])] for tied in verdict]
    if not places:
        return None
    if sorted(label for tied in places for label in tied) != list(question.labels) or not all(places):
        raise Malformed("the ranking does not name each response once")
    place = {label: number for number, tied in enumerate(places) for label in tied}
    return tuple(LEAD ** -place[label] for label in question.labels)


def _label(said: Any) -> str:
    """A letter or word as models write it (`a`, `Response A`, `Tie.`), as `A` or `TIE`; empty if it is no text."""
    return said.strip(" .'\"\n").upper().removeprefix("RESPONSE").strip() if isinstance(said, str) else ""


def _score(said: Any) -> int:
    """A whole score as models write it: 7, 7.0, "7", "7/10"."""
    found = None if isinstance(said, bool) else _WHOLE.fullmatch(str(said).strip())
    if found is None or not LOWEST <= int(found[1]) <= HIGHEST:
        raise Malformed(f"the score is no whole number from {LOWEST} to {HIGHEST}")
    return int(found[1])


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
