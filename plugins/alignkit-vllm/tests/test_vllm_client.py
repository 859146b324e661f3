"""The sampler against a scripted server: what goes over, what comes back, and everything that can fail in between."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_vllm.client import Client
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler
from alignkit_vllm.transfer import Transfer
from safetensors.torch import load_file
from scripted_vllm import ScriptedVLLM

from alignkit import Context, InputError, PluginError, Prompt, Sampling, StoppedByCheck
from alignkit.testing import SamplerContract, TinyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROMPTS = [Prompt(text=text) for text in ("one", "two two", "one")]
SAMPLING = Sampling(max_tokens=8, temperature=0.7)
UPDATE = [
    "/pause",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/resume",
]
CONNECT, SAMPLED = "/init_weight_transfer_engine", "/v1/completions"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    limits = {"start_seconds": 0.3, "update_seconds": 5.0, "sample_seconds": 5.0}
    return {"transfer_folder": str(tmp_path), "restarts": 1, **limits}


@pytest.fixture
def started(options: dict[str, Any]) -> Iterator[Callable[..., tuple[ScriptedVLLM, VLLMSampler]]]:
    """A server with a fault, and a sampler that has synced a policy to it."""
    opened: list[tuple[ScriptedVLLM, VLLMSampler]] = []

    def start(fault: Any = None, *, sync: bool = True, **more: Any) -> tuple[ScriptedVLLM, VLLMSampler]:
        server = ScriptedVLLM(fault).__enter__()
        sampler = VLLMSampler(VLLMOptions(urls=(server.url,), **{**options, **more}))
        opened.append((server, sampler))
        if sync:
            sampler.sync(policy(), 5)
        return server, sampler

    yield start
    for server, sampler in opened:
        sampler.close()
        server.__exit__(None, None, None)


def policy(seed: int = 3) -> TinyPolicy:
    return TinyPolicy(context=Context(seed=seed))


def sampled(sampler: VLLMSampler, n: int = 2, seed: int = 0) -> Any:
    return sampler.generate(PROMPTS, n=n, sampling=SAMPLING, seed=seed)


class TestVLLM(SamplerContract):
    component = VLLMSampler

    @pytest.fixture(autouse=True)
    def _server(self, tmp_path: Path) -> Iterator[None]:
        with ScriptedVLLM() as server:
            self.options = {"urls": (server.url,), "transfer_folder": str(tmp_path)}
            yield


def test_an_update_is_whole_and_said_in_order(started: Any) -> None:
    server, sampler = started()
    assert server.routes() == [CONNECT, *UPDATE]
    (asked,) = server.asked("/finish_weight_update")
    assert asked["weight_version"] == server.version == server.asked("/update_weights")[0]["update_info"]["version"]
    assert server.version.endswith("-5")
    sampler.sync(policy(), 6)
    assert server.routes()[7:] == UPDATE, "the engine is prepared once"
    own = policy().modules()["policy"].state_dict()
    theirs = server.policy.modules()["policy"].state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_request_holds_token_ids_the_stop_tokens_and_a_seed_of_its_place(started: Any) -> None:
    server, sampler = started()
    sampler.generate(PROMPTS, n=3, sampling=Sampling(max_tokens=8, temperature=0.7, top_k=5, min_p=0.1), seed=4)
    probe, *asked = sorted(server.asked(SAMPLED), key=lambda body: body["n"])
    assert (probe["n"], probe["temperature"]) == (1, 0.0)
    assert len({body["seed"] for body in asked}) == 3, "equal prompts share a seed"
    for body in asked:
        assert body["prompt"] in policy().prompt_ids(PROMPTS, 8)
        assert (body["n"], body["max_tokens"], body["temperature"]) == (3, 8, 0.7)
        assert (body["top_k"], body["top_p"], body["min_p"], body["min_tokens"]) == (5, 1.0, 0.1, 0)
        assert (body["stop_token_ids"], body["ignore_eos"], body["return_token_ids"]) == ([0], True, True)
        assert 0 <= body["seed"] < 2**62
    sampler.generate(PROMPTS, n=1, sampling=Sampling(), seed=4)
    assert server.asked(SAMPLED)[-1]["top_k"] == -1


def test_a_failed_request_is_asked_again_with_the_same_seeds(started: Any) -> None:
    whole = sampled(started()[1])
    server, sampler = started(lambda _, route, before: (500, "oops") if (route, before) == (SAMPLED, 2) else None)
    batch = sampled(sampler)
    assert batch.groups == whole.groups
    assert torch.equal(batch.sampler_logprobs, whole.sampler_logprobs)
    assert server.routes().count("/update_weights") == 2, "after trouble the weights are brought over again"
    seeds = [body["seed"] for body in server.asked(SAMPLED) if body["n"] == 2]
    assert len(set(seeds)) == 3 < len(seeds)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((0, ""), "is gone while asked for 2 responses"),
        ((200, "<html>"), "gave no responses"),
        ((200, {"choices": []}), "gave no responses"),
        (lambda said: {"choices": said["choices"][:1]}, "gave 1 responses where 2 were asked for"),
        (lambda said: {"choices": [{**one, "finish_reason": "abort"} for one in said["choices"]]}, "gave no responses"),
        (lambda said: {"choices": [{**one, "token_ids": []} for one in said["choices"]]}, "gave no responses"),
        (lambda said: {"choices": [{**one, "logprobs": None} for one in said["choices"]]}, "gave no responses"),
    ],
)
def test_what_is_no_answer_uses_up_the_tries(started: Any, answer: Any, said: str) -> None:
    server, sampler = started(lambda *call: answer if call[1] == SAMPLED and server_is_probed(call[0]) else None)
    with pytest.raises(StoppedByCheck, match=re.escape(said)) as raised:
        sampled(sampler)
    assert "sampler.restarts = 1 tries are used up" in str(raised.value)
    assert server.routes().count("/update_weights") == 2


def server_is_probed(server: ScriptedVLLM) -> bool:
    """Whether the call that is being answered is no probe."""
    return bool(server.asked(SAMPLED)[-1]["n"] > 1)


def test_a_client_that_is_closed_while_a_thread_connects_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []
    connect = socket.create_connection

    def connected(*call: Any, **how: Any) -> socket.socket:
        opened.append(connect(*call, **how))
        client.close()
        return opened[0]

    with ScriptedVLLM() as server:
        client = Client(server.url)
        monkeypatch.setattr(socket, "create_connection", connected)
        assert client.version() == "default"
        assert [one.fileno() for one in opened] == [-1]


def test_other_tokens_than_those_given_are_refused_at_once(started: Any) -> None:
    def other(said: Any) -> Any:
        return {"choices": [{**one, "prompt_token_ids": [7]} for one in said["choices"]]}

    _, sampler = started(lambda _, route, before: other if route == SAMPLED else None)
    with pytest.raises(PluginError, match=r"read the tokens \[7\]"):
        sampled(sampler)


def test_a_wrong_request_is_not_repeated(started: Any) -> None:
    server, sampler = started(lambda _, route, before: (400, "too long") if route == SAMPLED else None)
    with pytest.raises(PluginError, match="refused for 1 responses: 400 too long"):
        sampled(sampler)
    assert server.routes().count(SAMPLED) == 1


def test_every_wait_has_a_limit_and_says_what_for(started: Any) -> None:
    def hang(_: ScriptedVLLM, route: str, before: int) -> Any:
        if route == SAMPLED:
            time.sleep(1)

    _, sampler = started(hang, sample_seconds=0.2, restarts=0)
    with pytest.raises(StoppedByCheck, match=r"waited 0.2 s for http://\S+ for 1 responses"):
        sampled(sampler)


@pytest.mark.parametrize("route", [route for route in UPDATE if route != "/resume"])
def test_an_update_that_fails_half_way_is_made_again_as_a_whole(started: Any, route: str) -> None:
    server, sampler = started(lambda _, called, before: (500, "full") if (called, before) == (route, 0) else None)
    done = UPDATE[: UPDATE.index(route) + 1]
    assert server.routes() == [CONNECT, *done, CONNECT, *UPDATE], "it may be another server by now"
    assert sampled(sampler).version == 5


def test_after_a_failed_update_nothing_is_sampled(started: Any) -> None:
    broken = True

    def fault(_: ScriptedVLLM, route: str, before: int) -> Any:
        return (500, "no space") if broken and route == "/update_weights" else None

    server, sampler = started(fault, sync=False)
    for _ in range(2):
        with pytest.raises(StoppedByCheck, match=r"failed to load weights \w+-5: 500 no space"):
            sampler.sync(policy(), 5)
    with pytest.raises(StoppedByCheck, match="failed half way"):
        sampled(sampler)
    assert server.routes().count(SAMPLED) == 0
    broken = False
    sampler.sync(policy(), 6)
    assert sampled(sampler).version == 6


def test_a_prefix_cache_that_can_not_be_reset_is_trouble(started: Any) -> None:
    with pytest.raises(StoppedByCheck, match="keeps keys and values of old weights"):
        started(lambda _, route, before: (200, {"success": False}) if route == "/reset_prefix_cache" else None)


def test_an_update_that_did_not_take_is_noticed(started: Any) -> None:
    def other(_: ScriptedVLLM, route: str, before: int) -> Any:
        return (200, {"weight_version": "old"}) if route == "/weight_info" else None

    with pytest.raises(StoppedByCheck, match=r"has weights old after an update to \w+-5"):
        started(other)


def test_weights_of_another_run_are_replaced_and_nothing_of_theirs_is_kept(started: Any) -> None:
    whole = sampled(started()[1])
    server, sampler = started()
    server.version = "somebody-else"
    server.policy.modules()["policy"].load_state_dict(policy(8).modules()["policy"].state_dict())
    assert sampled(sampler).groups == whole.groups

    def interfere(server: ScriptedVLLM, route: str, before: int) -> None:
        if route == SAMPLED and before == 2:
            server.version = "somebody-else"

    server, sampler = started(interfere)
    assert sampled(sampler).groups == whole.groups
    assert server.routes().count("/update_weights") == 2
    server.version = "somebody-else"
    with pytest.raises(StoppedByCheck, match=r"has weights somebody-else, not \w+-5"):
        sampled(sampler)


def test_a_probe_tells_old_weights_under_a_new_version(started: Any) -> None:
    server, sampler = started()
    sampled(sampler)
    old = {name: tensor.clone() for name, tensor in server.policy.modules()["policy"].state_dict().items()}

    def keep_old_head(server: ScriptedVLLM, route: str, before: int) -> None:
        if route == "/finish_weight_update":
            server.policy.modules()["policy"].load_state_dict(
                {n: t for n, t in old.items() if "head" in n}, strict=False
            )

    server.fault = keep_old_head
    assert any("head" in name for name in old)
    moved = policy()
    with torch.no_grad():
        next(p for name, p in moved.modules()["policy"].named_parameters() if "head" in name).mul_(-20)
    sampler.sync(moved, 6)
    with pytest.raises(StoppedByCheck, match=r"its log-probabilities are [\d.]+ nats per token from the policy's"):
        sampled(sampler)


def test_prompts_are_spread_over_servers_and_all_are_updated(options: dict[str, Any]) -> None:
    with ScriptedVLLM() as one, ScriptedVLLM() as two:
        sampler = VLLMSampler(VLLMOptions(urls=(one.url, two.url), **options))
        sampler.sync(policy(), 1)
        both = sampled(sampler)
        assert one.version == two.version
        assert [sum(body["n"] == 2 for body in server.asked(SAMPLED)) for server in (one, two)] == [2, 1]
        sampler.close()
        sampler = VLLMSampler(VLLMOptions(urls=(two.url,), **options))
        sampler.sync(policy(), 1)
        assert sampled(sampler).groups == both.groups
        sampler.close()


def test_the_first_process_updates_and_all_sample(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_process(number: int) -> None:
        monkeypatch.setattr("alignkit_vllm.sampler.process_index", lambda: number)

    monkeypatch.setattr("alignkit_vllm.sampler.num_processes", lambda: 2)
    with ScriptedVLLM() as server:
        first, second = (
            VLLMSampler(VLLMOptions(urls=(server.url,), **options), Context(folder=tmp_path)) for _ in "ab"
        )
        for version in (0, 1):
            as_process(0)
            first.sync(policy(version), version)
            before = len(server.routes())
            as_process(1)
            second.sync(policy(version), version)
            assert len(server.routes()) == before, "only the first process brings weights over"
            batch = second.generate(PROMPTS[1:], n=2, sampling=SAMPLING, seed=0, places=[1, 2])
            as_process(0)
            assert batch.groups == sampled(first).groups[1:]
            assert batch.version == version
        as_process(1)
        server.version = "somebody-else"
        with pytest.raises(StoppedByCheck, match=r"has weights somebody-else[\s\S]*look at the server, then --resume"):
            sampled(second)
        homeless = VLLMSampler(VLLMOptions(urls=(server.url,), **options))
        homeless.sync(policy(), 0)
        with pytest.raises(PluginError, match="in several processes needs a run directory"):
            sampled(homeless)
        for one in (first, second):
            one.close()


def test_no_server_is_said_so(options: dict[str, Any]) -> None:
    with ScriptedVLLM() as server:
        url = server.url
    sampler = VLLMSampler(VLLMOptions(urls=(url,), **options))
    with pytest.raises(StoppedByCheck, match=rf"waited 0.3 s for {url} to answer"):
        sampler.sync(policy(), 0)
    sampler.close()


def test_a_server_without_the_routes_is_said_so() -> None:
    with ScriptedVLLM(lambda _, route, before: (404, "")) as server:
        client = Client(server.url)
        with pytest.raises(
            PluginError, match="has no /init_weight_transfer_engine: start it with VLLM_SERVER_DEV_MODE"
        ):
            client.connect()
        client.close()


def test_a_policy_that_only_samples_itself_is_refused(options: dict[str, Any]) -> None:
    sampler = VLLMSampler(VLLMOptions(urls=("http://127.0.0.1:1",), **options))
    with pytest.raises(InputError, match="Bare can't hand its weights to another engine"):
        sampler.sync(type("Bare", (), {})(), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"urls": ("node1:8000",)}, "'node1:8000' is no address"),
        ({"urls": ("http://a",), "python": "/bin/sh"}, "has no effect without an empty urls"),
        ({"command": ("vllm",), "python": "/bin/sh"}, "has no effect without an empty command"),
        ({"python": "/bin/sh", "flags": ("--enable-lora",)}, "takes no new weights below them"),
        ({"python": "/no/such/python"}, "no such file"),
        ({"urls": ("http://a",), "transfer_folder": "/no/such"}, "no such folder"),
        ({"urls": ("http://a",), "mismatch": "off", "mismatch_cap": 2.0}, "has no effect without mismatch other than"),
        ({"urls": ("http://a",), "mismatch_cap": 0.0}, "must be more than 0"),
        ({"urls": ("http://a",), "restarts": -1}, "must be at least 0"),
    ],
)
def test_options_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        VLLMOptions(**given)


def test_without_vllm_its_python_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="python: vLLM is not installed in this environment"):
        VLLMOptions()


def test_weights_go_over_in_files_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit_vllm.transfer.FILE_BYTES", 16)
    base = torch.arange(8.0)
    transfer = Transfer(tmp_path)
    transfer.write([("a", base[:2]), ("b", base[2:4]), ("c", base), ("d", torch.zeros(1))], "v1")
    files = [load_file(path) for path in transfer.paths]
    assert [sorted(file) for file in files] == [["a", "b"], ["c"], ["d"]]
    assert torch.equal(files[0]["b"], torch.tensor([2.0, 3.0]))
    first = transfer.paths
    transfer.write([("a", base[:2])], "v2")
    assert [Path(path).exists() for path in first] == [True, False, False]
    transfer.close()
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    for name in ("alignkit-weights-999999999-x", f"alignkit-weights-{os.getpid()}-x", "other"):
        (tmp_path / name).mkdir()
    Transfer(tmp_path).close()
    assert sorted(path.name[:18] for path in tmp_path.iterdir()) == [
        "alignkit-weights-" + str(os.getpid())[0],
        "other",
    ]
