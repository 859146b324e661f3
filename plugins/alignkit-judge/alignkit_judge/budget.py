"""What was asked and what it cost, and a stop before it costs more. Shared by the threads and the judges of a run."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignkit_judge.options import BudgetOptions, JudgeModel


class BudgetSpent(Exception):  # noqa: N818
    """The next request may pass the budget."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, as the server counts them or as they are estimated before it."""

    question: int
    reply: int

    def money(self, judge: JudgeModel) -> float:
        """What they cost."""
        return (self.question * judge.price_in + self.reply * judge.price_out) / 1e6


class Budget:
    """Counts requests, tokens and money. What is under way counts with its estimate, so that the limit on requests is
    exact and the others are passed by no more than an estimate is wrong."""

    def __init__(self, limits: BudgetOptions) -> None:
        self._limits, self._lock = limits, Lock()
        self.requests = self.paid = self.tokens = 0
        self.money = 0.0
        self._tokens_under_way, self._money_under_way = 0, 0.0

    def reserve(self, judge: JudgeModel, estimate: Usage) -> None:
        """Before each request. Raises BudgetSpent where it may pass a limit."""
        tokens, money = estimate.question + estimate.reply, estimate.money(judge)
        limits = self._limits
        with self._lock:
            if (
                (limits.requests and self.requests + 1 > limits.requests)
                or (limits.tokens and self.tokens + self._tokens_under_way + tokens > limits.tokens)
                or (limits.money and self.money + self._money_under_way + money > limits.money)
            ):
                raise BudgetSpent
            self.requests += 1
            self._tokens_under_way += tokens
            self._money_under_way += money

    def settle(self, judge: JudgeModel, estimate: Usage, used: Usage | None) -> None:
        """After each request: what was used, None where the server did not answer."""
        with self._lock:
            self._tokens_under_way -= estimate.question + estimate.reply
            self._money_under_way -= estimate.money(judge)
            if used is not None:
                self.paid += 1
                self.tokens += used.question + used.reply
                self.money += used.money(judge)
