"""Plugin: policy gradients without a critic. Torch-free; an algorithm is imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.hookspecs import hookimpl
from alignkit_grpo import options

if TYPE_CHECKING:
    from alignkit.hookspecs import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers the algorithms, which are one base with different options."""
    register("grpo", "alignkit_grpo.grpo:GRPO", config=options.GRPOOptions)
    register("rloo", "alignkit_grpo.rloo:RLOO", config=options.RLOOOptions)
    register("reinforce", "alignkit_grpo.reinforce:REINFORCE", config=options.REINFORCEOptions)
