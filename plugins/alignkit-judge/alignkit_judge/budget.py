"""Counts what was asked and what it cost, and stops before a limit is passed. Shared by all threads and judges."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignkit_judge.options import BudgetOptions, JudgeModel


class BudgetSpent(Exception):  # noqa: N818
    """The next request may exceed the budget."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, as counted by the server or estimated before it is sent."""

    question: int
    reply: int

    def money(self, judge: JudgeModel) -> float:
        """Their cost."""
        return (self.question * judge.price_in + self.reply * judge.price_out) / 1e6


class Budget:
    """Counts requests, tokens and money. Requests under way count with their estimate, so the limit on requests is
    exact, and the other limits are exceeded by at most the error of an estimate."""

    def __init__(self, limits: BudgetOptions) -> None:
        self._limits, self._lock = limits, Lock()
        self.requests = self.paid = self.tokens = self.timed_out = 0
        self.money = 0.0
        self._tokens_under_way, self._money_under_way = 0, 0.0

    def reserve(self, judge: JudgeModel, estimate: Usage) -> None:
        """Call before each request. Raises BudgetSpent if the request may exceed a limit."""
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

    def settle(self, judge: JudgeModel, estimate: Usage, used: Usage | None, *, timed_out: bool = False) -> None:
        """Call after each request with what it used, or None if the server did not answer.

        Args:
            timed_out: the server may have answered too late, and may charge for it: the estimate counts.
        """
        with self._lock:
            self._tokens_under_way -= estimate.question + estimate.reply
            self._money_under_way -= estimate.money(judge)
            if timed_out:
                self.timed_out += 1
                used = estimate
            elif used is not None:
                self.paid += 1
            if used is not None:
                self.tokens += used.question + used.reply
                self.money += used.money(judge)
