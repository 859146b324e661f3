"""vLLM's own engines, NCCL and CUDA IPC, for models whose layers share a weight. Runs in vLLM's workers."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from alignkit_vllm_worker.shared import prepare_again, sharing


class _Shared:
    """Layers that share a weight with another (tied embeddings) prepare it again after an update."""

    model: Any

    def start_weight_update(self) -> None:
        self._shared = sharing(self.model)
        super().start_weight_update()  # type: ignore[misc]

    def finish_weight_update(self) -> None:
        super().finish_weight_update()  # type: ignore[misc]
        prepare_again(self._shared)


class NCCLEngine(_Shared, NCCLWeightTransferEngine):  # type: ignore[misc]
    """Receives weights by NCCL's broadcast."""


class IPCEngine(_Shared, IPCWeightTransferEngine):  # type: ignore[misc]
    """Reads weights from another process's memory on the same device."""
