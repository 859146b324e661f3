"""Options of the reward source `http`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignkit import Config, Count, Positive, check_address, check_key_variable

EXAMPLE = "http://127.0.0.1:8000"


@dataclass(frozen=True, kw_only=True)
class HttpOptions(Config):
    """A reward behind a server, such as one that `alignkit serve-reward` started."""

    matters: ClassVar[tuple[str, ...]] = ("url", "key_env", "batch_size", "concurrency", "patience")

    url: str
    """Address of the server."""
    key_env: str = ""
    """Environment variable that holds the server's key (not the key itself). Empty: no key is sent."""
    batch_size: Count = 64
    """Responses per request; a group is never divided."""
    concurrency: Count = 4
    """Concurrent requests."""
    timeout: Positive = 60.0
    """Seconds without a byte from the server before a request is given up and sent again."""
    patience: Positive = 300.0
    """Seconds for which a request is sent again, so that a server may restart; then the run stops (exit code 3). The
    wait between tries starts at 0.5 s and doubles up to 15 s, with jitter; the server's Retry-After can make it
    longer."""

    def check(self) -> None:
        """Raises InputError if the address or the key can't be used."""
        super().check()
        check_address(self.url, where="url", example=EXAMPLE)
        if self.key_env:
            check_key_variable(self.key_env)
