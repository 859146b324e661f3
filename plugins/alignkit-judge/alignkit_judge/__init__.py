"""Plugin: `judge`, a language model as annotator. Imports no torch; components are imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_judge import options

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_preference_sources(register: Register) -> None:
    """Registers `judge`."""
    register("judge", "alignkit_judge.source:JudgeSource", config=options.JudgePreferenceOptions)


@hookimpl
def register_reward_sources(register: Register) -> None:
    """Registers `judge`."""
    register("judge", "alignkit_judge.source:JudgeReward", config=options.JudgeRewardOptions)
