"""What alignkit adds to a vLLM server: an engine that reads weights from files. Imports neither alignkit nor vLLM."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in each of its processes (`vllm.general_plugins`)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "alignkit-file" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("alignkit-file", f"{__name__}.engine", "FileEngine")
