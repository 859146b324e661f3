"""Replies of judges' servers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from alignkit_judge.questions import HIGHEST, LOWEST, Question
from alignkit_judge.remote import NoCompletion, read_completion
from alignkit_judge.replies import Malformed, parse_reply

from tests.fuzz.mutations import as_json, mutated, mutated_bytes

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from alignkit_judge.questions import Form
    from alignkit_judge.replies import Alternatives

QUESTIONS = tuple(
    Question(protocol, "q", ("a", "b", "c")[:count], "best", reasoning)
    for protocol, count in (("pairwise", 2), ("listwise", 3), ("pointwise", 1))
    for reasoning in (False, True)
)
VERDICTS = {"pairwise": {"verdict": "A"}, "listwise": {"ranking": [["B"], ["A", "C"]]}, "pointwise": {"score": 7}}
AROUND = ("<think>x</think>{}", "```json\n{}\n```", "Sure: {}", "{}\n{}", "\ud800{}", "\x1b[31m{}")
TOKENS = ("7", "9", " 7", "10", "\u00b2", "x", None, "9" * 5000)
LOGPROBS = (-0.1, -0.7, -9999.0, 0.0, 5.0, 1e6, math.nan, math.inf, -math.inf, None, "x", True)


def replies(draw: random.Random, _folder: Path) -> str:
    """A completion with a verdict: it gives finite numbers in their range, or is malformed."""
    question = draw.choice(QUESTIONS)
    said = {"id": question.nonce, **({"reasoning": "because"} if question.reasoning else {})}
    said |= VERDICTS[question.protocol]
    text = as_json(mutated(draw, said) if draw.random() < 0.5 else said)
    if draw.random() < 0.3:
        text = draw.choice(AROUND).replace("{}", text)
    if draw.random() < 0.3:
        text = mutated_bytes(draw, text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
    body = _completion(draw, text)
    return read_reply(as_json(mutated(draw, body) if draw.random() < 0.3 else body), question)


def read_reply(body: str, question: Question | Form) -> str:
    """The verdict in the body of a completion."""
    try:
        reply = read_completion(body)
    except NoCompletion:
        return "refused"
    return read_verdict(reply.text, question, reply.alternatives)


def read_verdict(text: str, question: Question | Form, alternatives: Alternatives) -> str:
    """The verdict in a text."""
    try:
        answer = parse_reply(text, question, alternatives)
    except Malformed:
        return "refused"
    for number in answer.values or ():
        assert math.isfinite(number), answer
        assert LOWEST <= number <= HIGHEST if question.protocol == "pointwise" else number >= 0, answer
    return "read"


def _completion(draw: random.Random, text: str) -> Any:
    """A completion with every character as a token, and alternatives of any log-probabilities."""

    def alternatives() -> list[Any]:
        return [{"token": draw.choice(TOKENS), "logprob": draw.choice(LOGPROBS)} for _ in range(2)]

    tokens = [{"token": token, "logprob": -0.1, "top_logprobs": alternatives()} for token in text[:400]]
    message = {"content": text, "refusal": None}
    choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
