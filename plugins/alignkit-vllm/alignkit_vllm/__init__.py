"""Plugin: the sampler `vllm`. Imports no torch; vLLM itself is never imported, it lives in a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_vllm.options import VLLMOptions

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_samplers(register: Register) -> None:
    """Registers `vllm`."""
    register("vllm", "alignkit_vllm.sampler:VLLMSampler", config=VLLMOptions)
