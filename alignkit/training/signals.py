"""SIGINT and SIGTERM end a run after a checkpoint; a second one has its default effect."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alignkit.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminated_cleanly() -> Iterator[None]:
    """SIGTERM raises SystemExit(143), as SIGINT raises KeyboardInterrupt, so that resources are closed; a second one
    stops at once. Does nothing outside the main thread, or if SIGTERM already has a handler."""

    def leave(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopSignals:
    """The signal that asked to stop: `number`, or 0.

    Args:
        on_signal: is told its name when it comes.
        relayed: whether a launcher sends on what it gets, so that a second signal is no second wish.
    """

    def __init__(self, on_signal: Callable[[str], None], *, relayed: bool = False) -> None:
        self.number = 0
        self._on_signal, self._relayed = on_signal, relayed

    @property
    def name(self) -> str:
        """The signal's name. Raises ValueError if none has come."""
        return signal.Signals(self.number).name

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Records the first signal; the next one has its usual effect, unless signals are relayed. Does nothing outside
        the main thread."""

        def request_stop(number: int, _frame: object) -> None:
            if self.number:
                return
            self.number = number
            if not self._relayed:
                give_back()
            self._on_signal(self.name)

        def give_back() -> None:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

        try:
            previous = {number: signal.signal(number, request_stop) for number in NUMBERS}
        except ValueError:  # not in the main thread
            yield
            return
        try:
            yield
        finally:
            give_back()

    def raise_after(self, step: int) -> None:
        """Raises Interrupted if a signal has come. Call it after the step's checkpoint."""
        if self.number:
            raise Interrupted(
                self.number,
                f"stopped by {self.name} after step {step}; "
                "a checkpoint is saved: continue with --resume (resume=True in Python)",
            )
