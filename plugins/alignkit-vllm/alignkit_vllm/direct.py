"""The policy's weights from device to device, by the trainer's half of vLLM's own engines (NCCL, CUDA IPC)."""

from __future__ import annotations

import base64
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from alignkit.ops import process_index
from alignkit_vllm.server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, dtype

    from alignkit import Policy
    from alignkit_vllm.client import Client

_ENGINES = "vllm.distributed.weight_transfer"


class Direct:
    """Sends weights to all servers at once. Every training process makes one and sends; only the first has clients.

    Args:
        transfer: "nccl" or "ipc".
        seconds: the longest step of an update.
    """

    def __init__(self, transfer: str, clients: Sequence[Client], seconds: float) -> None:
        engines: Any = import_module(_ENGINES)
        # The workers of one server after the other, behind the trainer, which is the first of NCCL's group.
        places = [*accumulate((client.workers() for client in clients), initial=1)] if transfer == "nccl" else []
        self._servers, self._weights = _Servers(clients, places, seconds), _Weights()
        self._engine = engines.WeightTransferTrainerFactory.trainer_init(
            _nccl(clients, places[-1]) if places else _ipc(), client=self._servers, source=self._weights
        )

    def send(self, policy: Policy[Any], version: str) -> None:
        """Updates all servers; returns once each has the weights and says so."""
        self._weights.policy, self._servers.version = policy, version
        self._engine.send_weights()

    def close(self) -> None:
        self._engine.shutdown()


def _nccl(clients: Sequence[Client], size: int) -> Any:
    """Where the first process meets the servers' workers, which are `size` with it."""
    engine: Any = import_module(f"{_ENGINES}.nccl_engine")
    address = _own_address(clients[0].url) if clients else "127.0.0.1"
    return engine.NCCLTrainerInitInfo(
        rank=process_index(), master_address=address, master_port=free_port(address), world_size=size
    )


def _ipc() -> Any:
    """Packed: a buffer at a time, so that no second copy of the weights lies on the device."""
    engine: Any = import_module(f"{_ENGINES}.ipc_engine")
    return engine.IPCTrainerInitInfo(rank=process_index(), packed=True)


def _own_address(url: str) -> str:
    """The address under which the server at `url` reaches this machine."""
    target = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((target.hostname, target.port or 80))  # sends nothing
        found: str = way.getsockname()[0]
        return found


@dataclass(frozen=True)
class _Meta:
    name: str
    dtype: dtype
    shape: tuple[int, ...]


class _Weights:
    """What vLLM calls a weight source: the policy's weights under transformers' names, each whole."""

    policy: Any

    def __init__(self) -> None:
        self._known: list[_Meta] = []

    def metadata(self) -> list[_Meta]:
        """Names, types and shapes, in order; the first call looks at every weight, in all processes."""
        if not self._known:
            self._known = [_Meta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]
        return self._known

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.policy.named_weights():
            yield name, tensor.detach().contiguous()


class _Servers:
    """What vLLM calls a client: the steps of an update, taken by all servers.

    Args:
        places: of each server's first worker in NCCL's group; empty without one.
    """

    version = ""

    def __init__(self, clients: Sequence[Client], places: Sequence[int], seconds: float) -> None:
        self._clients, self._seconds = clients, seconds
        self._places = dict(zip(clients, places, strict=False))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        moved = {client: {"rank_offset": place} for client, place in self._places.items()}
        self._each(lambda client: client.connect(init_info | moved.get(client, {}), seconds=self._seconds))

    def start_weight_update(self) -> None:
        self._each(lambda client: client.begin_update(seconds=self._seconds))

    def update_weights(self, update_info: Any) -> None:
        info = _as_json(update_info)
        self._each(lambda client: client.load(info, self.version, seconds=self._seconds))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The version is this process's, whatever vLLM would say."""
        self._each(lambda client: client.finish_update(self.version, seconds=self._seconds))

    def _each(self, step: Callable[[Client], None]) -> None:
        with ThreadPoolExecutor(len(self._clients)) as pool:
            list(pool.map(step, self._clients))


def _as_json(info: dict[str, Any]) -> dict[str, Any]:
    """Handles of CUDA memory are Python objects, which go pickled, as vLLM's own client sends them."""
    found = {key: value for key, value in info.items() if value is not None}
    if (handles := found.pop("ipc_handles", None)) is not None:
        found["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode("ascii")
    return found
