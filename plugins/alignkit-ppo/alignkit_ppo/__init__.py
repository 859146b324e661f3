"""Plugin: proximal policy optimisation. Torch-free; the algorithm is imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.hookspecs import hookimpl
from alignkit_ppo.options import PPOOptions

if TYPE_CHECKING:
    from alignkit.hookspecs import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers `ppo`."""
    register("ppo", "alignkit_ppo.ppo:PPO", config=PPOOptions)
