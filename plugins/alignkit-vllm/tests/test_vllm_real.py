"""A real vLLM server on CPU: `make test-vllm`. Its Python is named by ALIGNKIT_VLLM_PYTHON.

One server serves most tests; each test that kills it costs a start, half a minute on an idle machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy
from alignkit_vllm.client import Client, Trouble
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler
from safetensors.torch import load_file
from scripted_vllm import steps_of
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import alignkit
from alignkit import Context, Prompt, Sampling, registry
from alignkit.algorithms import policy_logprobs
from alignkit.testing import TinyReward
from alignkit.testing.material import nudge
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignkit import GroupBatch

PYTHON = os.environ.get("ALIGNKIT_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="ALIGNKIT_VLLM_PYTHON names no Python with vLLM: make test-vllm"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "64")
PROMPTS = [Prompt(text="a short one"), Prompt(text="the cat sat on the mat. " * 12), Prompt(text="a short one")]
SECONDS = 1800.0


def write_model(folder: Path, *, tied: bool) -> Path:
    """A Llama with heads of 32, the smallest that vLLM serves on a CPU; its end token is 0."""
    write_tiny_llama(folder)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(folder: Path, device: str = "cpu") -> HFPolicy:
    return HFPolicy(HFOptions(model=str(folder), dtype="float32"), Context(device=device))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tied"), tied=True)


def started(folder: Path, tmp: Path, **more: Any) -> Iterator[VLLMSampler]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(name, os.environ.get(name, value))
        options = VLLMOptions(python=PYTHON, flags=FLAGS, start_seconds=SECONDS, restarts=1, probe_limit=1e-3, **more)
        sampler = VLLMSampler(options, Context(folder=tmp))
        yield sampler
        sampler.close()


@pytest.fixture(scope="module")
def sampler(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMSampler]:
    yield from started(folder, tmp_path_factory.mktemp("run"))


def sampled(sampler: VLLMSampler, **how: Any) -> GroupBatch:
    return sampler.generate(PROMPTS, n=4, sampling=Sampling(**{"max_tokens": 24, **how}), seed=3)


def apart(policy: HFPolicy, batch: GroupBatch) -> float:
    assert batch.sampler_logprobs is not None
    return float((policy_logprobs(policy, batch, 10**6) - batch.sampler_logprobs).abs().max())


def assert_follows_every_sync(sampler: VLLMSampler, policy: HFPolicy) -> None:
    seen = []
    for version in range(4):
        sampler.sync(policy, version)
        for temperature in (1.0, 0.7, 0.0):
            batch = sampled(sampler, temperature=temperature)
            assert apart(policy, batch) < 1e-4, (version, temperature)
            assert batch.version == version
        assert sampled(sampler).groups == sampled(sampler).groups, "the same seeds gave other samples"
        seen.append(sampled(sampler).groups)
        nudge(policy.modules(), size=0.02)
    assert all(one != other for one, other in pairwise(seen)), "samples did not change with a sync"


def test_rollouts_follow_every_sync_with_tied_embeddings(sampler: VLLMSampler, folder: Path) -> None:
    assert_follows_every_sync(sampler, load(folder))


def test_an_update_with_a_wrong_file_changes_nothing_and_a_whole_one_succeeds(
    sampler: VLLMSampler, folder: Path
) -> None:
    policy = load(folder)
    sampler.sync(policy, 0)
    before = sampled(sampler)
    [client] = sampler._clients
    version = client.version()
    assert sampler._transfer is not None
    with pytest.raises(Trouble, match="failed to load weights another-version"):
        client.update(sampler._transfer.paths, "another-version", seconds=60)
    client.ask("to resume", "/resume")
    assert client.version() == version
    assert sampled(sampler).groups == before.groups
    nudge(policy.modules(), size=0.02)
    sampler.sync(policy, 1)
    assert apart(policy, sampled(sampler)) < 1e-4


@pytest.mark.parametrize("name", ["ppo", "grpo", "online-dpo"])
def test_algorithms_train_for_ten_iterations(name: str, sampler: VLLMSampler, folder: Path, tmp_path: Path) -> None:
    algorithm: Any = registry().load("optimizer", name)
    more: dict[str, Any] = {"critic": "policy"} if name == "ppo" else {}
    options = {"iterations": 10, "batch_size": 3, "group_size": 4, "minibatch_size": 3, "learning_rate": 1e-3}
    versions: list[int] = []

    class Watched(algorithm):  # type: ignore[misc]
        def prepare(self, batch: GroupBatch) -> GroupBatch:
            versions.append(batch.version)
            prepared: GroupBatch = super().prepare(batch)
            return prepared

    optimizer = Watched(algorithm.Config(**options, **more), policy=load(folder), reward=TinyReward())
    sampling = Sampling(max_tokens=16)
    out = tmp_path / "out"
    alignkit.train(optimizer, PROMPTS, sampling=sampling, sampler=sampler, out=out, progress=False)
    assert versions == list(range(10))
    log = steps_of(out)
    assert max(record["sampler_kl"] for record in log) < 1e-7
    assert min(record["effective_share"] for record in log) > 1 - 1e-4
    assert log[-1]["entropy"] != log[0]["entropy"]


def test_a_batch_that_was_sampled_ahead_is_of_the_weights_that_it_names(folder: Path, tmp_path: Path) -> None:
    """Ten iterations, each batch under way while the one before is trained; log-probabilities as the old weights'."""
    algorithm: Any = registry().load("optimizer", "grpo")
    options = {"iterations": 10, "batch_size": 3, "group_size": 4, "minibatch_size": 3, "learning_rate": 1e-3}
    found: list[tuple[int, float]] = []
    old: list[Any] = []

    class Watched(algorithm):  # type: ignore[misc]
        def prepare(self, batch: GroupBatch) -> GroupBatch:
            old.append(self.policy.reference())  # the weights after len(old) batches
            found.append((batch.version, apart(old[batch.version], batch)))
            prepared: GroupBatch = super().prepare(batch)
            return prepared

    optimizer = Watched(algorithm.Config(**options), policy=load(folder), reward=TinyReward())
    for sampler in started(folder, tmp_path / "run", ahead=1):
        out = tmp_path / "out"
        alignkit.train(optimizer, PROMPTS, sampling=Sampling(max_tokens=16), sampler=sampler, out=out, progress=False)
    assert [version for version, _ in found] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert max(difference for _, difference in found) < 1e-4
    log = steps_of(out)
    assert log[0]["sampler_kl"] < 1e-7
    assert min(record["sampler_kl"] for record in log[2:]) > 1e-6, "no batch is of older weights"


def test_a_saved_folder_means_the_same_in_vllm(sampler: VLLMSampler, folder: Path) -> None:
    """The server started with a folder that the policy saved: greedy tokens and the end token by vLLM's own rules."""
    policy = load(folder)
    sampler.sync(policy, 0)
    [client] = sampler._clients
    for prompt in policy.prompt_ids(PROMPTS, 40):
        body = {"model": "policy", "prompt": prompt, "max_tokens": 40, "temperature": 0.0, "return_token_ids": True}
        found = client.ask("for an answer", "/v1/completions", body, seconds=60)["choices"][0]["token_ids"]
        lm: Any = policy.raw.lm
        whole = lm.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)
        assert found == whole[0, len(prompt) :].tolist()


def kill_soon(sampler: VLLMSampler, seconds: float) -> threading.Timer:
    """Kills the whole server, in so many seconds."""
    assert sampler.server is not None
    timer = threading.Timer(seconds, os.killpg, (sampler.server.pid, signal.SIGKILL))
    timer.start()
    return timer


@pytest.mark.slow
def test_killed_in_a_request_it_is_started_again_with_the_same_samples(sampler: VLLMSampler, folder: Path) -> None:
    policy = load(folder)
    nudge(policy.modules(), size=0.02)
    sampler.sync(policy, 0)
    expected = sampled(sampler, max_tokens=200)
    sampler.tries = 1
    timer = kill_soon(sampler, 0.15)
    assert sampled(sampler, max_tokens=200).groups == expected.groups
    timer.join()
    assert sampler.tries == 0, "the server was not killed in time"
    assert apart(policy, expected) < 1e-4


@pytest.mark.slow
def test_killed_in_an_update_it_is_started_again(
    sampler: VLLMSampler, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(folder)
    ask, killed = Client.ask, []

    def killing(self: Client, what: str, path: str, *given: Any, **more: Any) -> Any:
        if path == "/update_weights" and not killed:
            killed.append(kill_soon(sampler, 0.0))
            time.sleep(0.01)
        return ask(self, what, path, *given, **more)

    sampler.sync(policy, 1)
    monkeypatch.setattr(Client, "ask", killing)
    nudge(policy.modules(), size=0.02)
    sampler.tries = 1
    sampler.sync(policy, 2)
    assert (sampler.tries, len(killed)) == (0, 1)
    assert apart(policy, sampled(sampler)) < 1e-4


@pytest.mark.slow
def test_rollouts_follow_every_sync_with_a_head_of_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "untied", tied=False)
    for sampler in started(folder, tmp_path / "run"):
        assert_follows_every_sync(sampler, load(folder))


@pytest.mark.gpu
@pytest.mark.parametrize(("transfer", "devices"), [("ipc", 1), ("nccl", 2)])
def test_rollouts_follow_weights_that_go_from_device_to_device(
    transfer: str, devices: int, folder: Path, tmp_path: Path
) -> None:
    """alignkit and vLLM in one environment; for NCCL the server has the second device."""
    pytest.importorskip("vllm", reason="vLLM is not in this environment")
    if torch.cuda.device_count() < devices:
        pytest.skip(f"{transfer} needs {devices} CUDA devices")
    seen = f"CUDA_VISIBLE_DEVICES={devices - 1}"
    server = {"command": ("env", seen, sys.executable, "-m", "vllm.entrypoints.openai.api_server")}
    flags = (*FLAGS, "--gpu-memory-utilization", "0.2")
    options = VLLMOptions(transfer=transfer, flags=flags, start_seconds=SECONDS, probe_limit=1e-3, **server)  # type: ignore[arg-type]
    sampler = VLLMSampler(options, Context(folder=tmp_path))
    try:
        assert_follows_every_sync(sampler, load(folder, "cuda:0"))
    finally:
        sampler.close()


RECIPE = """
[policy]
plugin = "hf"
model = {model!r}
dtype = "float32"

[prompts]
path = "prompts.jsonl"

[reward]
plugin = "function"
function = "vowels:score"

[sampling]
max_tokens = 16

[sampler]
plugin = "vllm"
python = {python!r}
model = {model!r}
flags = {flags}
start_seconds = {seconds}

[optimizer]
plugin = "grpo"
iterations = 3
batch_size = 5
group_size = 4
minibatch_size = 2
learning_rate = 1e-4

[run]
device = "cpu"
"""
REWARD = """
def score(prompts, completions, **columns):
    return [sum(one in "aeiou" for one in text) / (1 + len(text)) for text in completions]
"""


@pytest.mark.slow
def test_two_training_processes_end_with_the_weights_of_one(folder: Path, tmp_path: Path) -> None:
    """Whole and split weights, five prompts a batch for two processes; each run starts a server of its own."""
    values = {"model": str(folder), "python": PYTHON, "flags": json.dumps(FLAGS), "seconds": SECONDS}
    (tmp_path / "recipe.toml").write_text(RECIPE.format(**values), encoding="utf-8")
    (tmp_path / "vowels.py").write_text(REWARD, encoding="utf-8")
    rows = [json.dumps({"prompt": f"{word} the cat sat"}) for word in ("a", "one", "here", "then", "after that")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    two = ("--launch", "torchrun", "--processes", "2")
    runs = {"one": (), "two": two, "split": (*two, "-o", "run.shard=fsdp2")}
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = {}
    for name, flags in runs.items():
        words = [sys.executable, "-m", "alignkit", "run", "recipe.toml", "--out", name, "--quiet", *flags]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, done.stderr)
        log = steps_of(tmp_path / name)
        assert max(record["sampler_kl"] for record in log) < 1e-7, name
        ended[name] = ([record["reward"] for record in log], load_file(tmp_path / name / "policy/model.safetensors"))
    rewards, weights = ended.pop("one")
    start = load_file(folder / "model.safetensors")
    assert max(float((weights[key] - start[key]).abs().max()) for key in start) > 1e-4, "nothing was learned"
    for name, (found, others) in ended.items():
        assert found == pytest.approx(rewards, abs=1e-6), f"{name}: other samples"
        apart = {key: float((others[key] - value).abs().max()) for key, value in weights.items()}
        assert max(apart.values()) < 1e-5, (name, apart)
