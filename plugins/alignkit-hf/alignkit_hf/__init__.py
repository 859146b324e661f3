"""Policies from transformers causal LMs, and supervised fine-tuning. Importing this module imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_hf.options import HFOptions, SFTOptions

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_policies(register: Register) -> None:
    """Policy `hf`: any causal LM that transformers loads."""
    register("hf", "alignkit_hf.policy:HFPolicy", config=HFOptions)


@hookimpl
def register_optimizers(register: Register) -> None:
    """Optimizer `sft`: supervised fine-tuning on demonstrations."""
    register("sft", "alignkit_hf.sft:SFT", config=SFTOptions)
