"""SIGINT and SIGTERM while a judge answers: what is under way is waited for and kept."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Stop:
    """The signal that asked to stop: `number`, or 0."""

    number = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name


@contextmanager
def first_signal_caught(on_signal: Callable[[str], None]) -> Iterator[Stop]:
    """Records the first signal; a second one has its usual effect. Does nothing outside the main thread.

    Args:
        on_signal: is told the signal's name when it comes.
    """
    stop = Stop()

    def caught(number: int, _frame: object) -> None:
        stop.number = number
        give_back()
        on_signal(stop.name)

    def give_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    previous: dict[int, signal.Handlers | Callable[..., object] | int | None] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, caught)
    except ValueError:  # not in the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        give_back()
