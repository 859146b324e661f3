"""Plugin: policy gradients without a critic. Torch-free; an algorithm is imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_grpo import options

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers the algorithms: one base with different options, and the imitation of the best."""
    register("grpo", "alignkit_grpo.grpo:GRPO", config=options.GRPOOptions)
    register("rloo", "alignkit_grpo.rloo:RLOO", config=options.RLOOOptions)
    register("reinforce", "alignkit_grpo.reinforce:REINFORCE", config=options.REINFORCEOptions)
    register("dr-grpo", "alignkit_grpo.dr_grpo:DrGRPO", config=options.DrGRPOOptions)
    register("dapo", "alignkit_grpo.dapo:DAPO", config=options.DAPOOptions)
    register("gspo", "alignkit_grpo.gspo:GSPO", config=options.GSPOOptions)
    register(
        "reinforce++",
        "alignkit_grpo.reinforce_plus_plus:REINFORCEPlusPlus",
        config=options.REINFORCEPlusPlusOptions,
    )
    register("remax", "alignkit_grpo.remax:ReMax", config=options.ReMaxOptions)
    register("raft", "alignkit_grpo.raft:RAFT", config=options.RAFTOptions)
