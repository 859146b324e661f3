"""A reward that lets one process of several fail, as the environment says: FAIL, FAIL_RANK, FAIL_CALL, FAIL_BEGAN."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_CALLS = [0]


def letters(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The share of the letter a in each response."""
    _CALLS[0] += 1
    if os.environ.get("RANK", "0") == os.environ.get("FAIL_RANK") and _CALLS[0] == int(os.environ["FAIL_CALL"]):
        Path(os.environ["FAIL_BEGAN"]).touch()
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
        _spoil_the_loss()


def _spoil_the_loss() -> None:
    from alignkit.training import engine

    def refuse(*_: Any) -> Any:
        raise RuntimeError("the loss is out of cheese")

    engine.checked_loss = refuse


def _fill_the_disk() -> None:
    from alignkit.training import checkpoint

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint.torch.save = refuse
