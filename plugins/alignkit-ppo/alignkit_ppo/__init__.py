"""Plugin: policy gradients with a critic. Imports no torch; algorithms are imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_ppo.options import A2COptions, PPOKLOptions, PPOOptions, TRPOOptions

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers the algorithms."""
    register("ppo", "alignkit_ppo.ppo:PPO", config=PPOOptions)
    register("ppo-kl", "alignkit_ppo.ppo_kl:PPOKL", config=PPOKLOptions)
    register("trpo", "alignkit_ppo.trpo:TRPO", config=TRPOOptions)
    register("a2c", "alignkit_ppo.ppo:A2C", config=A2COptions)
