"""All judges of a run behind one call: cached questions are not asked again, and the budget holds for all judges."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from alignkit import InputError, StoppedByCheck
from alignkit_judge.budget import Budget, BudgetSpent
from alignkit_judge.cache import VerdictCache
from alignkit_judge.questions import Answer, digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignkit import Context
    from alignkit_judge.options import JudgeModel, JudgeOptions
    from alignkit_judge.questions import Question
    from alignkit_judge.remote import RemoteJudge

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """How a judge is reached."""

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """(index of the question, answer) as they come."""


class Panel:
    """The judges. A judge is connected to, or loaded, at its first question that is not in the cache.

    Attributes:
        budget: what was asked and paid.
        cached: number of answers from the cache.
    """

    def __init__(self, options: JudgeOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._cache = VerdictCache(_cache_path(options, context))
        self._backends: dict[int, Backend] = {}
        self.budget = Budget(options.budget)
        self.cached = 0
        self.missing = 0

    @property
    def names(self) -> list[str]:
        """The judges' names in records, made unique."""
        names = [judge.name for judge in self._options.panel]
        return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]

    def ask(self, questions: Sequence[Question]) -> list[list[Answer]]:
        """Each judge's answers to the questions.

        Raises:
            StoppedByCheck: the budget is spent and `budget.then` is "stop", or a server doesn't answer.
            InputError: a judge can't be used.
        """
        distinct = list(dict.fromkeys(questions))
        answers = [
            dict(zip(distinct, self._ask(number, distinct), strict=True)) for number in range(len(self._options.panel))
        ]
        return [[known[question] for question in questions] for known in answers]

    def spent(self) -> str:
        """What this run has asked and paid, as text."""
        budget = self.budget
        money = f", {budget.money:.4f} money" if budget.money else ""
        late = f", {budget.timed_out} timed out and counted as paid" if budget.timed_out else ""
        paid = f"{budget.paid} paid{late} ({budget.tokens} tokens{money})"
        return f"{budget.requests} requests, {paid}, {self.cached} answers from the cache"

    def reach(self) -> None:
        """Raises InputError if a judge's server can't be reached; only a warning if there are saved verdicts of it."""
        for number, judge in enumerate(self._options.panel):
            if judge.backend == "local":
                continue
            try:
                cast("RemoteJudge", self._backend(number)).reach()
            except InputError as error:
                if not self._cache.has_any(identity_of(judge)):
                    raise
                logger.warning("judge %s: %s; continuing with its saved verdicts", judge.name, error.what)

    def _ask(self, number: int, questions: Sequence[Question]) -> list[Answer]:
        identity = identity_of(self._options.panel[number])
        found = {index: self._cache.get(identity, question) for index, question in enumerate(questions)}
        answers = {index: answer for index, answer in found.items() if answer is not None}
        self.cached += len(answers)
        open_ = [index for index in found if index not in answers]
        if open_:
            try:
                for place, answer in self._backend(number).answers([questions[index] for index in open_]):
                    index = open_[place]
                    answers[index] = answer
                    if answer.final:
                        self._cache.put(identity, questions[index], answer, judge_name=self.names[number])
            except BudgetSpent:
                self._stop(len(questions), len(answers))
        return [answers.get(index, Answer(None, "not asked: the budget is spent", final=False)) for index in found]

    def _stop(self, wanted: int, known: int) -> None:
        self.missing += wanted - known
        said = (
            f"the judge's budget is spent after {self.budget.requests} requests ({self.budget.paid} paid, "
            f"{self.budget.tokens} tokens, {self.budget.money:.2f} money): {known} of {wanted} questions are answered, "
            f"{wanted - known} are missing"
        )
        if self._options.budget.then == "stop":
            raise StoppedByCheck(f"{said}; the verdicts are saved: continue with the same command and a larger budget")
        logger.warning("%s", said)

    def _backend(self, number: int) -> Backend:
        if number not in self._backends:
            judge = self._options.panel[number]
            if judge.backend == "local":
                from alignkit_judge.local import LocalJudge

                self._backends[number] = LocalJudge(judge, self._context.device)
            else:
                from alignkit_judge.remote import RemoteJudge

                self._backends[number] = RemoteJudge(judge, self._options, self.budget)
        return self._backends[number]


def identity_of(judge: JudgeModel) -> str:
    """What a verdict depends on besides the question: the model and how it is run. For a local folder that includes
    its files' sizes and times, so a model that was trained further counts as another judge."""
    common = [judge.backend, judge.model, judge.temperature, judge.reply_tokens]
    if judge.backend == "openai":
        return digest([*common, judge.base_url, judge.structured, judge.top_logprobs])
    folder = Path(judge.model)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return digest([*common, judge.min_mass, judge.dtype, stats])


def _cache_path(options: JudgeOptions, context: Context) -> Path | None:
    if options.cache != "auto":
        return Path(options.cache).expanduser() if options.cache else None
    return context.cache / "verdicts.sqlite" if context.cache is not None else None
