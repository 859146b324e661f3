"""Preference source `human` and the command `alignkit label`: people compare and rank responses. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_label.options import HumanOptions
from alignkit_label.store import Store

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1

__all__ = ["HumanOptions", "Store"]


@hookimpl
def register_preference_sources(register: Register) -> None:
    register("human", "alignkit_label.source:Human", config=HumanOptions)
