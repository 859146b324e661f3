"""Plugin: TRL's own trainers. Imports no torch; TRL is imported when a trainer runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_trl.options import (
    TRLDPOOptions,
    TRLGRPOOptions,
    TRLKTOOptions,
    TRLRewardOptions,
    TRLRLOOOptions,
    TRLSFTOptions,
)

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers TRL's trainers under their own names, prefixed with `trl-`."""
    register("trl-sft", "alignkit_trl.offline:TRLSFT", config=TRLSFTOptions)
    register("trl-reward", "alignkit_trl.reward:TRLReward", config=TRLRewardOptions)
    register("trl-dpo", "alignkit_trl.offline:TRLDPO", config=TRLDPOOptions)
    register("trl-kto", "alignkit_trl.offline:TRLKTO", config=TRLKTOOptions)
    register("trl-grpo", "alignkit_trl.online:TRLGRPO", config=TRLGRPOOptions)
    register("trl-rloo", "alignkit_trl.online:TRLRLOO", config=TRLRLOOOptions)
