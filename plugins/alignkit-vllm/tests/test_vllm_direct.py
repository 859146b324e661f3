"""Weights from device to device: vLLM's half of the trainer is played, the servers are scripted.

The played engine follows the order of vLLM 0.32's own, and puts the tensors themselves where handles would be.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler
from alignkit_vllm.server import _command, _environment
from alignkit_vllm_worker.shared import prepare_again, sharing
from scripted_vllm import ScriptedVLLM
from test_vllm_client import UPDATE

from alignkit import InputError, Prompt, Sampling, StoppedByCheck
from alignkit.algorithms import policy_logprobs
from alignkit.testing import TinyPolicy
from alignkit.testing.material import nudge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPTS = [Prompt(text="one"), Prompt(text="two two")]
ENGINES = "vllm.distributed.weight_transfer"


class PlayedEngine:
    """The trainer's half."""

    made: PlayedEngine

    def __init__(self, info: Any, client: Any, source: Any) -> None:
        self.info, self._client, self._source, self.closed = info, client, source, False
        places = {"rank_offset": 1, "world_size": info.world_size} if hasattr(info, "world_size") else {}
        client.init_weight_transfer_engine({"packed": True, **places})
        PlayedEngine.made = self

    def send_weights(self) -> None:
        known = self._source.metadata()
        self._client.start_weight_update()
        weights = [weight.clone() for _, weight in self._source]
        assert [tuple(weight.shape) for weight in weights] == [meta.shape for meta in known]
        assert {meta.dtype for meta in known} == {torch.float32}
        names = [meta.name for meta in known]
        self._client.update_weights({"names": names, "ipc_handles": weights, "tensor_sizes": None})
        self._client.finish_weight_update()

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def play(name: str, **members: Any) -> None:
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    factory = SimpleNamespace(trainer_init=lambda info, *, client, source: PlayedEngine(info, client, source))
    play("vllm", __spec__=SimpleNamespace(name="vllm"))
    play(ENGINES, WeightTransferTrainerFactory=factory)
    play(f"{ENGINES}.nccl_engine", NCCLTrainerInitInfo=SimpleNamespace)
    play(f"{ENGINES}.ipc_engine", IPCTrainerInitInfo=SimpleNamespace)


@pytest.fixture
def servers() -> Iterator[list[ScriptedVLLM]]:
    with ScriptedVLLM() as one, ScriptedVLLM() as other:
        yield [one, other]


def sampler_of(*servers: ScriptedVLLM, transfer: str = "nccl") -> VLLMSampler:
    urls = tuple(server.url for server in servers)
    return VLLMSampler(VLLMOptions(urls=urls, transfer=transfer, start_seconds=5.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("transfer", ["nccl", "ipc"])
def test_servers_sample_with_the_weights_of_every_sync(servers: list[ScriptedVLLM], transfer: str) -> None:
    sampler, policy = sampler_of(*servers, transfer=transfer), TinyPolicy()
    for version in (1, 2):
        nudge(policy.modules(), size=0.3)
        sampler.sync(policy, version)
        batch = sampler.generate(PROMPTS, n=3, sampling=Sampling(max_tokens=6), seed=version)
        assert batch.sampler_logprobs is not None
        torch.testing.assert_close(policy_logprobs(policy, batch, 1000), batch.sampler_logprobs)
    for server in servers:
        called = [route for route in server.routes() if route not in ("/v1/completions", "/get_world_size")]
        assert called == ["/init_weight_transfer_engine", *UPDATE, *UPDATE]
        assert server.version == sampler._token
        assert all("tensor_sizes" not in body["update_info"] for body in server.asked("/update_weights"))
    sampler.close()
    assert PlayedEngine.made.closed
    assert PlayedEngine.made.info.rank == 0


def test_each_worker_has_a_place_of_its_own_in_nccl_s_group(servers: list[ScriptedVLLM]) -> None:
    sampler = sampler_of(*servers)
    sampler.sync(TinyPolicy(), 0)
    infos = [server.asked("/init_weight_transfer_engine")[0]["init_info"] for server in servers]
    assert [info["rank_offset"] for info in infos] == [1, 3], "two workers each, after the trainer"
    assert {info["world_size"] for info in infos} == {5}
    assert PlayedEngine.made.info.master_address == "127.0.0.1"
    assert PlayedEngine.made.info.master_port > 1023
    sampler.close()


def test_a_handle_needs_no_place(servers: list[ScriptedVLLM]) -> None:
    sampler = sampler_of(servers[0], transfer="ipc")
    sampler.sync(TinyPolicy(), 0)
    assert servers[0].asked("/init_weight_transfer_engine") == [{"init_info": {"packed": True}}]
    assert PlayedEngine.made.info.packed
    sampler.close()


def test_an_update_that_fails_ends_the_run() -> None:
    with ScriptedVLLM(lambda _, route, __: (500, "no") if route == "/update_weights" else None) as server:
        sampler = sampler_of(server)
        with pytest.raises(StoppedByCheck, match=r"failed to load weights .*-4: 500 no\n  fix: look"):
            sampler.sync(TinyPolicy(), 4)
        sampler.close()


def test_a_server_with_other_weights_is_not_updated_again(servers: list[ScriptedVLLM]) -> None:
    sampler = sampler_of(servers[0])
    sampler.sync(TinyPolicy(), 0)
    servers[0].version = "another"
    with pytest.raises(StoppedByCheck, match="has weights another"):
        sampler.generate(PROMPTS, n=1, sampling=Sampling(max_tokens=4), seed=0)
    sampler.close()


def test_what_can_not_work_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transfer_folder: has no effect without transfer = 'file'"):
        VLLMOptions(urls=("http://a",), transfer="ipc", transfer_folder=str(tmp_path))
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(InputError, match="ipc needs vLLM in the environment of the training"):
        VLLMOptions(urls=("http://a",), transfer="ipc")


def test_the_server_gets_the_engine_and_what_it_asks_for(tmp_path: Path) -> None:
    words = _command(VLLMOptions(), "model", "http://127.0.0.1:1", "ipc")
    assert words[words.index("--weight-transfer-config") + 1] == '{"backend": "alignkit-ipc"}'
    assert _environment(tmp_path, "ipc")["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in _environment(tmp_path, "nccl")


class Head(torch.nn.Linear):
    prepared = 0

    @property
    def quant_method(self) -> Any:
        return SimpleNamespace(process_weights_after_loading=self._prepare)

    def _prepare(self, layer: Any) -> None:
        assert layer is self
        self.prepared += 1


def test_layers_that_share_a_weight_prepare_it_again() -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "middle": Head(3, 3), "head": Head(3, 5)})
    model["head"].weight = model["embed"].weight
    shared = sharing(model)
    loaded = model["embed"].weight = torch.nn.Parameter(torch.ones(5, 3))
    prepare_again(shared)
    assert model["head"].weight is loaded
    assert (model["head"].prepared, model["middle"].prepared) == (1, 0)
