"""vLLM's weight transfer from safetensors files, say in /dev/shm. Runs in vLLM's workers, written for vLLM 0.32.

Every file is looked at before the first weight changes: a server whose update was refused so goes on with the old
weights, while one whose model is half loaded dies at the next request.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from alignkit_vllm_worker.shared import prepare_again, sharing

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Init(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing."""


@dataclass
class Update(WeightTransferUpdateInfo):  # type: ignore[misc]
    """All files of an update, each with this version in its metadata."""

    paths: list[str]
    version: str


class FileEngine(WeightTransferEngine[Init, Update]):  # type: ignore[misc]
    """Loads the model's weights from files."""

    init_info_cls, update_info_cls = Init, Update

    def init_transfer_engine(self, init_info: Init) -> None:
        """There is nothing to connect."""

    def start_weight_update(self) -> None:
        """Leaves the model as it is until the files are known to be good."""
        self._loading = False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """The base class's method ends with synchronising an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Update) -> None:
        """Loads all files.

        Raises:
            RuntimeError: a file is of another version, or the files lack a weight of the model.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in update_info.paths]
            for path, file in zip(update_info.paths, files, strict=True):
                said = (file.metadata() or {}).get("version")
                if said != update_info.version:
                    raise RuntimeError(f"{path} holds version {said}, not {update_info.version}")
            expected = {name for name, _ in self.model.named_parameters()}
            self._shared = sharing(self.model)
            self._loading = True
            initialize_layerwise_reload(self.model)
            loaded = self.model.load_weights(_tensors(files))
        if loaded is not None and (missing := expected - set(loaded)):
            raise RuntimeError(f"the update lacks {len(missing)} weights, such as {min(missing)}")

    def finish_weight_update(self) -> None:
        """Places the weights where the kernels read them; layers that share a weight with another prepare it again."""
        if not self._loading:
            raise RuntimeError("no weights were loaded in this update")
        finalize_layerwise_reload(self.model, self.model_config)
        prepare_again(self._shared)
        self._loading = False

    def shutdown(self) -> None:
        """There is nothing to close."""


def _tensors(files: list[Any]) -> Iterator[tuple[str, Any]]:
    for file in files:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)
