"""A reward for runs in several processes that fails in one of them, as the environment says: FAIL, FAIL_RANK, FAIL_CALL."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_CALLS = [0]


def letters(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The share of the letter a in each response."""
    _CALLS[0] += 1
    if os.environ.get("RANK", "0") == os.environ.get("FAIL_RANK") and _CALLS[0] == int(os.environ["FAIL_CALL"]):
        _fail(os.environ["FAIL"])
    return [text.count("a") / max(1, len(text)) for text in completions]


def _fail(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    elif how == "stop all":
        os.kill(os.getppid(), signal.SIGTERM)
    elif how == "full disk":
        _fill_the_disk()
    else:
        raise RuntimeError("the judge is out of cheese")


def _fill_the_disk() -> None:
    from alignkit.training import checkpoint

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint.torch.save = refuse
