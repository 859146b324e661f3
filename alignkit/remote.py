"""What clients of servers share: where a server is, the name of its key, and how to wait before another try."""

from __future__ import annotations

import os
import random
import re
import time
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from alignkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|gsk|hf|xai)[-_][A-Za-z0-9_*-]{6,}")


class Unanswered(Exception):  # noqa: N818
    """The server did not answer this request, and more tries won't help."""


class RetryGate:
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


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a server asks to wait, 0 if it doesn't say (RFC 9110, section 10.2.3: seconds or a date)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0


def redacted(text: str, secret: str) -> str:
    """The text without the secret or anything that looks like a key."""
    return _KEY_LIKE.sub("[redacted]", text.replace(secret, "[redacted]") if secret else text)


def check_address(url: str, *, where: str, example: str) -> None:
    """For `check`: raises InputError unless the option `where` is a URL without credentials."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InputError("is not a URL", where=where, fix=f"give one like {example}")
    if address.username or address.password or address.query or address.fragment:
        raise InputError(
            "may contain credentials: it has a user, a query or a fragment",
            where=where,
            fix="put the key into an environment variable and set key_env to its name",
        )


def check_key_variable(name: str, *, where: str = "key_env") -> None:
    """For `check`: raises InputError unless this is an environment variable that is set."""
    if not (os.environ.get(name) or re.fullmatch(r"[A-Z_][A-Z0-9_]*", name)):
        raise InputError(
            "is not the name of an environment variable",
            where=where,
            fix="give the name of the variable that holds the key, not the key",
        )
    if not os.environ.get(name):
        raise InputError(
            f"the environment variable {name} is not set",
            where=where,
            fix=f"export {name}=..., or name another variable",
        )
