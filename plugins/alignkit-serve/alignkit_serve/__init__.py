"""Plugin: `http`, a reward behind a server. Imports no torch; components are imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_serve.options import HttpOptions

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_reward_sources(register: Register) -> None:
    """Registers `http`."""
    register("http", "alignkit_serve.reward:HttpReward", config=HttpOptions)
