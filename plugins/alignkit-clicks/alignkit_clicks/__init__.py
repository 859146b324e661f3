"""Plugin: the preference source `clicks`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_clicks.options import ClicksOptions

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_preference_sources(register: Register) -> None:
    register("clicks", "alignkit_clicks.source:Clicks", config=ClicksOptions)
