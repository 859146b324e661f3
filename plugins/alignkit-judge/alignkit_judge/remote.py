"""A judge behind an OpenAI-compatible server: concurrent requests, each retried until it is answered or given up.

The SDK's own retries are off: ours honour Retry-After for all threads at once and count every request.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import openai

from alignkit import (
    AlignkitError,
    InputError,
    Interrupted,
    RetryGate,
    StoppedByCheck,
    StopSignals,
    Unanswered,
    redacted,
    retry_after,
)
from alignkit_judge.budget import Budget, BudgetSpent, Usage
from alignkit_judge.options import OPENAI
from alignkit_judge.questions import CUT_OFF, MALFORMED, Answer
from alignkit_judge.replies import Malformed, parse_reply, reply_model
from alignkit_judge.templates import REMINDER, chat_messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from alignkit_judge.options import JudgeModel, JudgeOptions, RetryOptions
    from alignkit_judge.questions import Question
    from alignkit_judge.replies import Alternatives

logger = logging.getLogger(__name__)

FIRST_WAIT = 0.5
REACH_SECONDS = 10.0
CHARACTERS_PER_TOKEN = 3
SHOWN = 200
_TEMPORARY = (408, 409, 425, 429)
_REFUSED_KEY = (401, 403)
_REFUSING = (*_REFUSED_KEY, 404)
_WRONG_REQUEST = (400, 422, 501)
_FORMAT = re.compile(r"response_format|json_schema|json_object|structured|guided", re.IGNORECASE)


class NoCompletion(Exception):  # noqa: N818
    """The server answered with status 200 and something that is no completion; another try may help."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply.

    Attributes:
        cut: whether it reached `reply_tokens`.
    """

    text: str
    refusal: bool = False
    cut: bool = False
    usage: Usage | None = None
    alternatives: Alternatives = ()


class RemoteJudge:
    """Asks a server. Yields answers as they arrive; for an unanswered question, an answer that is not final."""

    def __init__(self, judge: JudgeModel, options: JudgeOptions, budget: Budget) -> None:
        self._judge, self._options, self._budget = judge, options, budget
        self._secret = os.environ.get(judge.key_variable, "") if judge.key_variable else ""
        openai_itself = judge.base_url.rstrip("/") == OPENAI
        self._longest = {"max_completion_tokens" if openai_itself else "max_tokens": judge.reply_tokens}
        self._gate = RetryGate()

    def reach(self) -> None:
        """Raises InputError if no server answers, or it refuses the key."""
        with self._connect() as client:
            try:
                client.models.with_raw_response.list(timeout=min(self._options.retry.timeout, REACH_SECONDS))
            except openai.APIStatusError as error:
                if error.status_code in _REFUSED_KEY:
                    self._judge_status(error, self._said(error))
            except openai.APIConnectionError as error:
                raise InputError(
                    "no server answers",
                    where=f"judge {self._judge.name}",
                    fix=f"start it, or correct base_url = {self._judge.base_url}",
                ) from error

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """(index of the question, answer), in the order of arrival. Whatever ends it, answers under way come first.

        Raises:
            BudgetSpent: the budget does not allow the next request.
            StoppedByCheck: too many questions in a row got no answer, or too many replies in a row are no verdicts.
            InputError: the server refuses the key, or the form of the request, or doesn't know the model.
            Interrupted: SIGINT or SIGTERM.
        """
        self._gate, self._client = RetryGate(), self._connect()
        waiting = iter(enumerate(questions))
        running: dict[Future[Answer], int] = {}
        streaks = Streaks(self._judge.name, self._options.retry)
        ending: Exception | None = None
        stop = StopSignals(self._say_stopping)
        pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="judge")
        try:
            with stop.caught():
                while True:
                    if stop.number and ending is None:
                        ending = Interrupted(
                            stop.number, f"stopped by {stop.name}; all verdicts are saved: continue with --resume"
                        )
                    while (
                        ending is None and len(running) < self._options.concurrency and (entry := next(waiting, None))
                    ):
                        running[pool.submit(self._ask, entry[1])] = entry[0]
                    if not running:
                        break
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        index = running.pop(done)
                        try:
                            answer = done.result()
                        except (BudgetSpent, AlignkitError) as error:
                            ending = ending or error
                        else:
                            yield index, answer
                            ending = ending or streaks.why_stop(answer)
                    if isinstance(ending, AlignkitError):
                        self._gate.open_for_good()
        finally:
            self._gate.open_for_good()
            pool.shutdown(cancel_futures=True)
            self._client.close()
        if ending is not None:
            raise ending

    def _say_stopping(self, name: str) -> None:
        self._gate.open_for_good()
        logger.warning("%s: waiting for the answers under way; repeat to drop them", name)

    def _connect(self) -> openai.OpenAI:
        return openai.OpenAI(
            api_key=self._secret or "none",
            base_url=self._judge.base_url,
            timeout=self._options.retry.timeout,
            max_retries=0,
        )

    def _ask(self, question: Question) -> Answer:
        messages = chat_messages(question)
        cost = Answer(None)
        reason = text = ""
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
            text = self._redacted(reply.text)
            if reply.refusal:
                reason = "refused"
                continue
            try:
                answer = parse_reply(text, question, reply.alternatives)
            except Malformed:
                reason = f"{CUT_OFF} at reply_tokens = {self._judge.reply_tokens}" if reply.cut else MALFORMED
                continue
            kept = text if self._options.keep_replies else ""
            return replace(cost, values=answer.values, reason=answer.reason, reasoning=answer.reasoning, reply=kept)
        return replace(cost, reason=reason, reply=text)

    def _reply(self, question: Question, messages: list[dict[str, str]]) -> tuple[Reply, Usage]:
        """The reply and what it used. Raises Unanswered, BudgetSpent, InputError, StoppedByCheck."""
        asked = sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN
        estimate = Usage(asked, self._judge.reply_tokens)
        problem = ""
        for attempt in range(self._options.retry.attempts):
            self._gate.wait(FIRST_WAIT * 2 ** (attempt - 1) if attempt else 0.0)
            self._budget.reserve(self._judge, estimate)
            used: Usage | None = None
            timed_out = False
            try:
                reply = self._request(question, messages)
                used = reply.usage or Usage(asked, len(reply.text) // CHARACTERS_PER_TOKEN)
                return reply, used
            except NoCompletion as error:
                problem = self._redacted(str(error))
            except openai.APIStatusError as error:
                problem = self._said(error)
                self._judge_status(error, problem)
            except openai.APIConnectionError as error:
                timed_out = isinstance(error, openai.APITimeoutError)
                problem = "timeout" if timed_out else "connection broken"
            finally:
                self._budget.settle(self._judge, estimate, used, timed_out=timed_out)
        raise Unanswered(f"{problem}, {self._options.retry.attempts} times")

    def _judge_status(self, error: openai.APIStatusError, problem: str) -> None:
        """Raises unless another try may help; closes the gate for the time that the server asks to wait."""
        status = error.status_code
        if status in _REFUSING:
            where = f"the variable {self._judge.key_variable}" if self._judge.key_variable else "key_env"
            raise InputError(
                problem, where=f"judge {self._judge.name}", fix=f"check {where}, model and base_url"
            ) from None
        if status in _WRONG_REQUEST and self._judge.structured != "text" and _FORMAT.search(problem):
            raise InputError(
                f"the server doesn't support structured = {self._judge.structured!r}: {problem}",
                where=f"judge {self._judge.name}",
                fix='set structured = "text"',
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
        return redacted(text, self._secret)

    def _request(self, question: Question, messages: list[dict[str, str]]) -> Reply:
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
        create: Any = self._client.chat.completions.with_raw_response.create
        said = create(model=judge.model, messages=messages, temperature=judge.temperature, **self._longest, **extra)
        return read_completion(said.text)


def read_completion(body: str) -> Reply:
    """The reply in the body of a completion.

    Raises:
        NoCompletion: there is none.
    """
    try:
        said = json.loads(body)
        if said.get("error"):
            raise NoCompletion(f"status 200 with an error: {str(said['error'])[:SHOWN]}")
        choice = said["choices"][0]
        message = choice["message"]
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        text = "" if content is None else content
        refusal = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
        if not isinstance(text, str):
            raise TypeError("the content is no text")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise NoCompletion(f"status 200 without a completion: {body[:SHOWN]!r}") from error
    cut = choice.get("finish_reason") == "length"
    return Reply(text, refusal, cut, _usage(said.get("usage")), _alternatives(choice.get("logprobs")))


def _usage(said: Any) -> Usage | None:
    """The tokens that the server counted; None if it doesn't say."""
    counts = [said.get(name) if isinstance(said, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    known = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    return Usage(*known) if len(known) == len(counts) else None


def _alternatives(said: Any) -> Alternatives:
    """The alternatives to each token; none if the server doesn't give them."""
    try:
        return [
            (str(token["token"]), [(str(other["token"]), float(other["logprob"])) for other in token["top_logprobs"]])
            for token in said["content"]
        ]
    except (LookupError, TypeError, ValueError, OverflowError):
        return ()


@dataclass
class Streaks:
    """Counts questions in a row without an answer, and replies in a row without a verdict."""

    judge: str
    limits: RetryOptions
    failures: int = 0
    unusable: list[str] = field(default_factory=list)

    def why_stop(self, answer: Answer) -> StoppedByCheck | None:
        """Counts an answer; the reason to stop if there are too many of a kind."""
        self.failures = 0 if answer.final else self.failures + 1
        if answer.unusable:
            self.unusable.append(f"{answer.reason}: {answer.reply[:SHOWN]!r}")
        elif answer.final:
            self.unusable.clear()
        if self.failures >= self.limits.max_failures:
            return StoppedByCheck(
                f"judge {self.judge}: {self.failures} questions in a row got no answer (the last: {answer.reason}); "
                "the verdicts so far are saved: continue with the same command"
            )
        if len(self.unusable) >= self.limits.max_unusable:
            shown = "\n".join(f"  {said}" for said in self.unusable[-3:])
            return StoppedByCheck(
                f"judge {self.judge}: {len(self.unusable)} replies in a row hold no verdict, among them\n{shown}\n"
                "  fix: raise reply_tokens if they are cut off; otherwise use a larger model, or structured = "
                '"json-schema"'
            )
        return None
