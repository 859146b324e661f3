"""A judge behind an OpenAI-compatible server: concurrent requests, each retried until it is answered or given up.

The SDK's own retries are off: ours honour Retry-After for all threads at once and count every request.
"""

from __future__ import annotations

import os
import random
import re
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import openai

from alignkit import InputError, StoppedByCheck
from alignkit_judge.budget import Budget, BudgetSpent, Usage
from alignkit_judge.options import OPENAI
from alignkit_judge.questions import Answer
from alignkit_judge.replies import Malformed, parse_reply, reply_model
from alignkit_judge.templates import REMINDER, chat_messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from alignkit_judge.options import JudgeModel, JudgeOptions
    from alignkit_judge.questions import Question
    from alignkit_judge.replies import Alternatives

FIRST_WAIT = 0.5
CHARACTERS_PER_TOKEN = 3
_TEMPORARY = (408, 409, 425, 429)
_REFUSING = (401, 403, 404)
_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|gsk|hf|xai)[-_][A-Za-z0-9_*-]{6,}")


class Unanswered(Exception):  # noqa: N818
    """The server did not answer this question, and more retries won't help."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply."""

    text: str
    refusal: bool
    usage: Usage | None
    alternatives: Alternatives = ()


class RemoteJudge:
    """Asks a server. Yields answers as they arrive; for an unanswered question, an answer that is not final."""

    def __init__(self, judge: JudgeModel, options: JudgeOptions, budget: Budget) -> None:
        self._judge, self._options, self._budget = judge, options, budget
        self._secret = os.environ.get(judge.key_variable, "") if judge.key_variable else ""
        openai_itself = judge.base_url.rstrip("/") == OPENAI
        self._longest = {"max_completion_tokens" if openai_itself else "max_tokens": judge.reply_tokens}
        self._gate = Gate()

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """(index of the question, answer), in the order of arrival.

        Raises:
            BudgetSpent: after the answers that were under way.
            StoppedByCheck: too many questions in a row got no answer.
            InputError: the server refuses the key or doesn't know the model.
        """
        self._gate = Gate()
        waiting = iter(enumerate(questions))
        running: dict[Future[Answer], int] = {}
        failures, spent = 0, False
        self._client = self._connect()
        pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="judge")
        try:
            while True:
                while not spent and len(running) < self._options.concurrency and (entry := next(waiting, None)):
                    running[pool.submit(self._ask, entry[1])] = entry[0]
                if not running:
                    break
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(done)
                    try:
                        answer = done.result()
                    except BudgetSpent:
                        spent = True
                        continue
                    yield index, answer
                    failures = 0 if answer.final else failures + 1
                    self._check(failures, answer)
        finally:
            self._gate.open_for_good()
            pool.shutdown(cancel_futures=True)
            self._client.close()
        if spent:
            raise BudgetSpent

    def _connect(self) -> openai.OpenAI:
        return openai.OpenAI(
            api_key=self._secret or "none",
            base_url=self._judge.base_url,
            timeout=self._options.retry.timeout,
            max_retries=0,
        )

    def _check(self, failures: int, last: Answer) -> None:
        if failures >= self._options.retry.max_failures:
            raise StoppedByCheck(
                f"judge {self._judge.name}: {failures} questions in a row got no answer (the last: {last.reason}); "
                "the verdicts so far are saved: continue with the same command"
            )

    def _ask(self, question: Question) -> Answer:
        messages = chat_messages(question)
        cost = Answer(None)
        reason = ""
        for reminder in ([], [{"role": "user", "content": REMINDER}]):
            try:
                reply, spent = self._reply(question, [*messages, *reminder])
            except Unanswered as error:
                return replace(cost, reason=str(error), final=False)
            cost = replace(
                cost,
                requests=cost.requests + 1,
                tokens=cost.tokens + spent.question + spent.reply,
                money=cost.money + spent.money(self._judge),
            )
            if reply is None or reply.refusal:
                reason = "malformed" if reply is None else "refused"
                continue
            try:
                answer = parse_reply(reply.text, question, reply.alternatives)
            except Malformed:
                reason = "malformed"
                continue
            reasoning = self._redacted(answer.reasoning)
            return replace(cost, values=answer.values, reason=answer.reason, reasoning=reasoning)
        return replace(cost, reason=reason)

    def _reply(self, question: Question, messages: list[dict[str, str]]) -> tuple[Reply | None, Usage]:
        """The reply, or None if it can't be read, and what it used. Raises Unanswered, BudgetSpent, InputError."""
        asked = sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN
        estimate = Usage(asked, self._judge.reply_tokens)
        problem = ""
        for attempt in range(self._options.retry.attempts):
            self._gate.wait(FIRST_WAIT * 2 ** (attempt - 1) if attempt else 0.0)
            self._budget.reserve(self._judge, estimate)
            used: Usage | None = None
            try:
                reply = self._request(question, messages)
                used = (reply.usage if reply else None) or Usage(
                    asked, len(reply.text) // CHARACTERS_PER_TOKEN if reply else 0
                )
                return reply, used
            except openai.APIStatusError as error:
                problem = self._said(error)
                self._judge_status(error, problem)
            except openai.APIConnectionError as error:
                problem = "timeout" if isinstance(error, openai.APITimeoutError) else "connection broken"
            finally:
                self._budget.settle(self._judge, estimate, used)
        raise Unanswered(f"{problem}, {self._options.retry.attempts} times")

    def _judge_status(self, error: openai.APIStatusError, problem: str) -> None:
        """Raises unless another try may help; closes the gate for the time that the server asks to wait."""
        status = error.status_code
        if status in _REFUSING:
            where = f"the variable {self._judge.key_variable}" if self._judge.key_variable else "key_env"
            raise InputError(
                problem, where=f"judge {self._judge.name}", fix=f"check {where}, model and base_url"
            ) from None
        if error.code == "insufficient_quota":
            raise StoppedByCheck(f"judge {self._judge.name}: {problem}; the verdicts so far are saved") from None
        if status not in _TEMPORARY and status < 500:
            raise Unanswered(problem) from None
        seconds = retry_after(error.response.headers, time.time())
        if seconds > self._options.retry.max_wait:
            raise Unanswered(f"{problem}; it asks to wait {seconds:.0f} s") from None
        if seconds:
            self._gate.close_for(seconds)

    def _said(self, error: openai.APIStatusError) -> str:
        return self._redacted(f"status {error.status_code}: {error.message}"[:300])

    def _redacted(self, text: str) -> str:
        """The text without the key or anything that looks like one."""
        return _KEY_LIKE.sub("[redacted]", text.replace(self._secret, "[redacted]") if self._secret else text)

    def _request(self, question: Question, messages: list[dict[str, str]]) -> Reply | None:
        judge = self._judge
        extra: dict[str, Any] = {}
        if judge.structured == "json-object":
            extra["response_format"] = {"type": "json_object"}
        elif judge.structured == "json-schema":
            schema = reply_model(question.protocol, question.reasoning).model_json_schema()
            form = {"name": "verdict", "strict": True, "schema": schema}
            extra["response_format"] = {"type": "json_schema", "json_schema": form}
        if judge.top_logprobs and question.protocol == "pointwise":
            extra |= {"logprobs": True, "top_logprobs": judge.top_logprobs}
        if question.sample:
            extra["seed"] = question.sample
        create: Any = self._client.chat.completions.create
        try:
            said = create(model=judge.model, messages=messages, temperature=judge.temperature, **self._longest, **extra)
            return _read(said)
        except (openai.APIResponseValidationError, ValueError, AttributeError, TypeError, LookupError, OverflowError):
            return None


def _read(said: Any) -> Reply:
    """The reply in a completion. Raises AttributeError, TypeError, LookupError, ValueError or OverflowError if there is
    none."""
    choice = said.choices[0]
    refusal = bool(getattr(choice.message, "refusal", None)) or choice.finish_reason == "content_filter"
    text = choice.message.content or ""
    if not isinstance(text, str):
        raise TypeError("no text")
    usage = said.usage
    used = None
    if usage is not None:
        used = Usage(max(0, int(usage.prompt_tokens)), max(0, int(usage.completion_tokens)))
    return Reply(text, refusal, used, _alternatives(choice))


def _alternatives(choice: Any) -> Alternatives:
    """The alternatives to each token; none if the server sends no list of them."""
    try:
        tokens = (choice.logprobs.content if getattr(choice, "logprobs", None) else None) or ()
        return [(token.token, [(other.token, other.logprob) for other in token.top_logprobs]) for token in tokens]
    except (AttributeError, TypeError):
        return ()


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a server asks to wait, 0 if it doesn't say (RFC 9110, section 10.2.3: seconds or a date)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0


class Gate:
    """Holds threads back before a request: each for its own wait, all for the wait that the server asks for."""

    def __init__(self) -> None:
        self._open, self._lock, self._not_before = Event(), Lock(), 0.0
        self._jitter = random.Random()

    def close_for(self, seconds: float) -> None:
        """Holds back the requests of all threads for this long."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def open_for_good(self) -> None:
        """Ends all waits with Unanswered."""
        self._open.set()

    def wait(self, seconds: float) -> None:
        """Waits for half to all of this time, then until the gate opens, plus a little jitter."""
        with self._lock:
            share = self._jitter.random()
        if seconds:
            self._open.wait(seconds * (0.5 + share / 2))
        while (left := self._not_before - time.monotonic()) > 0 and not self._open.is_set():
            self._open.wait(left + 0.05 * share)
        if self._open.is_set():
            raise Unanswered("the run is ending")
