"""What alignkit adds to a vLLM server: engines that get weights. Imports neither alignkit nor vLLM."""

from __future__ import annotations

ENGINES = {
    "alignkit-file": ("engine", "FileEngine"),
    "alignkit-nccl": ("devices", "NCCLEngine"),
    "alignkit-ipc": ("devices", "IPCEngine"),
}
"""Name -> the module and the class."""


def register() -> None:
    """Called by vLLM in each of its processes (`vllm.general_plugins`)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for name, (module, engine) in ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, f"{__name__}.{module}", engine)
