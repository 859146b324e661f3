"""Plugin: policy gradients without a critic. Imports no torch; algorithms are imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_grpo import options

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers the algorithms: one base with different options, and `raft`."""
    register("grpo", "alignkit_grpo.members:GRPO", config=options.GRPOOptions)
    register("rloo", "alignkit_grpo.members:RLOO", config=options.RLOOOptions)
    register("reinforce", "alignkit_grpo.members:REINFORCE", config=options.REINFORCEOptions)
    register("dr-grpo", "alignkit_grpo.members:DrGRPO", config=options.DrGRPOOptions)
    register("dapo", "alignkit_grpo.members:DAPO", config=options.DAPOOptions)
    register("gspo", "alignkit_grpo.members:GSPO", config=options.GSPOOptions)
    register("reinforce++", "alignkit_grpo.members:REINFORCEPlusPlus", config=options.REINFORCEPlusPlusOptions)
    register("remax", "alignkit_grpo.members:ReMax", config=options.ReMaxOptions)
    register("raft", "alignkit_grpo.raft:RAFT", config=options.RAFTOptions)
