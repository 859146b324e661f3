"""Plugin: preference optimisation, mostly without rollouts. Imports no torch; algorithms are imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_dpo import options

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers `dpo` and its family."""
    register("dpo", "alignkit_dpo.dpo:DPO", config=options.DPOOptions)
    register("online-dpo", "alignkit_dpo.online_dpo:OnlineDPO", config=options.OnlineDPOOptions)
    register("robust-dpo", "alignkit_dpo.dpo:RobustDPO", config=options.RobustDPOOptions)
    register("dpop", "alignkit_dpo.dpo:DPOP", config=options.DPOPOptions)
    register("rdpo", "alignkit_dpo.dpo:RDPO", config=options.RDPOOptions)
    register("beta-dpo", "alignkit_dpo.beta_dpo:BetaDPO", config=options.BetaDPOOptions)
    register("ipo", "alignkit_dpo.ipo:IPO", config=options.IPOOptions)
    register("sppo", "alignkit_dpo.ipo:SPPO", config=options.SPPOOptions)
    register("slic", "alignkit_dpo.slic:SLiC", config=options.SLiCOptions)
    register("apo-zero", "alignkit_dpo.apo:APOZero", config=options.APOZeroOptions)
    register("apo-down", "alignkit_dpo.apo:APODown", config=options.APODownOptions)
    register("exo", "alignkit_dpo.whole_rankings:EXO", config=options.EXOOptions)
    register("nca", "alignkit_dpo.whole_rankings:NCA", config=options.NCAOptions)
    register("list-dpo", "alignkit_dpo.whole_rankings:ListDPO", config=options.ListDPOOptions)
    register("cpo", "alignkit_dpo.reference_free:CPO", config=options.CPOOptions)
    register("simpo", "alignkit_dpo.reference_free:SimPO", config=options.SimPOOptions)
    register("orpo", "alignkit_dpo.reference_free:ORPO", config=options.ORPOOptions)
    register("kto", "alignkit_dpo.kto:KTO", config=options.KTOOptions)
