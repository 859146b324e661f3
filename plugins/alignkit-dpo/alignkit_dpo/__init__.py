"""Plugin: direct preference optimisation. Torch-free; an algorithm is imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.hookspecs import hookimpl
from alignkit_dpo.options import DPOOptions, IPOOptions

if TYPE_CHECKING:
    from alignkit.hookspecs import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers `dpo` and `ipo`."""
    register("dpo", "alignkit_dpo.dpo:DPO", config=DPOOptions)
    register("ipo", "alignkit_dpo.ipo:IPO", config=IPOOptions)
