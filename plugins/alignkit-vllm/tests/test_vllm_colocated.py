"""`sampler.colocated` against an object that plays `vllm.LLM`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from alignkit_vllm import colocated
from alignkit_vllm.client import Sampled, Trouble
from alignkit_vllm.colocated import InProcess
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler
from safetensors import safe_open
from scripted_vllm import steps_of

import alignkit
from alignkit import InputError, PluginError, Prompt, Sampling, StoppedByCheck, registry
from alignkit.testing import TinyPolicy, TinyReward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PROMPTS = [Prompt(text=text) for text in ("a red", "blue", "green")]
UPDATE = ["start_weight_update", "update_weights", "finish_weight_update", "reset_prefix_cache", "get_weight_version"]
CHECK = "get_weight_version"


class PlayedLLM:
    """`vllm.LLM` with the tiny policy's weights; it may be used only while it is awake.

    Attributes:
        calls: the methods that were called, in order.
        fault: by method, what happens instead.
    """

    def __init__(self) -> None:
        self.policy, self.token, self.asleep = TinyPolicy(), "default", False
        self.calls: list[str] = []
        self.fault: dict[str, Callable[[], Any]] = {}
        self.params: list[Any] = []
        self.resources = SimpleNamespace(engine_dead=False)
        core = SimpleNamespace(resources=self.resources, shutdown=lambda: self.calls.append("shutdown"))
        self.llm_engine = SimpleNamespace(engine_core=core)

    def __getattr__(self, name: str) -> Any:
        def method(*given: Any, **more: Any) -> Any:
            self.calls.append(name)
            assert not self.asleep or name in ("wake_up", CHECK), f"{name} while it sleeps"
            if name in self.fault:
                return self.fault[name]()
            return getattr(type(self), f"_{name}", lambda *_: None)(self, *given)

        return method

    def _get_weight_version(self) -> str:
        return self.token

    def _update_weights(self, request: Mapping[str, Any]) -> None:
        [path] = request["update_info"]["paths"]
        with safe_open(path, "pt") as file:
            self.policy.modules()["policy"].load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118

    def _finish_weight_update(self, version: str) -> None:
        self.token = version

    def _reset_prefix_cache(self) -> bool:
        return True

    def _sleep(self) -> None:
        self.asleep = True

    def _wake_up(self) -> None:
        self.asleep = False

    def _generate(self, prompts: list[Any], params: list[Any]) -> list[Any]:
        self.params.append(params)
        return [self._answer(one["prompt_token_ids"], how) for one, how in zip(prompts, params, strict=True)]

    def _answer(self, ids: list[int], how: Any) -> Any:
        assert how.temperature or how.n == 1, "vLLM refuses this"
        sampling = Sampling(max_tokens=how.max_tokens, temperature=how.temperature)
        batch = self.policy.generate(
            [Prompt.of(self.policy._text.text(ids))], n=how.n, sampling=sampling, seed=how.seed
        )
        outputs, start = [], 0
        for index, (length, ended) in enumerate(zip(batch.lengths.tolist(), batch.finished.tolist(), strict=True)):
            tokens = batch.response_ids[start : start + length].tolist()
            likely = batch.logprobs[start : start + length].tolist()
            start += length
            logprobs = [{token: SimpleNamespace(logprob=x)} for token, x in zip(tokens, likely, strict=True)]
            reason = "stop" if ended else "length"
            outputs.append(SimpleNamespace(index=index, token_ids=tokens, logprobs=logprobs, finish_reason=reason))
        return SimpleNamespace(prompt_token_ids=ids, outputs=outputs[::-1])


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> PlayedLLM:
    """The engine that is made; vLLM seems to be installed, with a device on which it can sleep."""
    played, vllm = PlayedLLM(), ModuleType("vllm")
    vllm.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    vllm.__spec__ = find_spec("json")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(colocated, "_engine", lambda model, flags: (played, True))
    return played


def sampler_of(folder: Path, **more: Any) -> VLLMSampler:
    return VLLMSampler(VLLMOptions(colocated=True, transfer_folder=str(folder), **more))


def test_the_engine_wakes_for_an_update_and_sleeps_after_the_batch(llm: PlayedLLM, tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path)
    batch = ["generate", "sleep", CHECK]
    sampler.sync(TinyPolicy(), 0)
    assert llm.calls == ["init_weight_transfer_engine", *UPDATE]
    llm.calls.clear()
    sampler.generate(PROMPTS, n=2, sampling=Sampling(max_tokens=8), seed=0)
    assert llm.calls == [CHECK, "generate", *batch], "the probe, and all prompts in one call"
    assert [len(params) for params in llm.params] == [1, 3]
    llm.calls.clear()
    sampler.generate(PROMPTS, n=2, sampling=Sampling(max_tokens=8), seed=1)
    assert llm.calls == [CHECK, "wake_up", *batch]
    llm.calls.clear()
    sampler.sync(TinyPolicy(), 1)
    assert llm.calls == ["wake_up", *UPDATE]
    assert llm.token.endswith("-1")
    sampler.close()
    assert llm.calls[-1] == "shutdown"


def test_where_it_cannot_sleep_it_stays_awake(llm: PlayedLLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(colocated, "_engine", lambda model, flags: (llm, False))
    sampler = sampler_of(tmp_path)
    for version in range(2):
        sampler.sync(TinyPolicy(), version)
        sampler.generate(PROMPTS, n=2, sampling=Sampling(max_tokens=8), seed=0)
    sampler.close()
    assert not {"sleep", "wake_up"} & set(llm.calls)


def test_responses_are_in_order_with_their_own_logprobs_and_seeds(llm: PlayedLLM, tmp_path: Path) -> None:
    sampler, policy = sampler_of(tmp_path), TinyPolicy(context=alignkit.Context(seed=8))
    sampler.sync(policy, 4)
    how = Sampling(max_tokens=8, temperature=0.7, top_k=5, min_p=0.1, stop=("zz",))
    batch = sampler.generate(PROMPTS, n=3, sampling=how, seed=4)
    asked = llm.params[-1]
    assert len({one.seed for one in asked}) == 3
    for one in asked:
        assert (one.n, one.max_tokens, one.temperature, one.top_k, one.top_p, one.min_p) == (3, 8, 0.7, 5, 1.0, 0.1)
        assert (one.stop_token_ids, one.ignore_eos, one.logprobs, one.stop) == ([0], True, 0, ["zz"])
        assert one.detokenize, "a stop text needs text"
    plain = Sampling(max_tokens=8)
    batch = sampler.generate(PROMPTS, n=3, sampling=plain, seed=4)
    assert not llm.params[-1][0].detokenize
    assert llm.params[-1][0].top_k == -1
    own = policy.forward(batch).logprobs
    assert batch.sampler_logprobs is not None
    assert torch.allclose(own, batch.sampler_logprobs, atol=1e-5)
    assert batch.version == 4
    for place, prompt in enumerate(PROMPTS):
        alone = policy.generate([prompt], n=3, sampling=plain, seed=llm.params[-1][place].seed)
        assert batch.groups[place].responses == alone.groups[0].responses
    sampler.close()


def test_the_likeliest_tokens_are_drawn_once(llm: PlayedLLM) -> None:
    engine = InProcess("model")
    prompts = TinyPolicy().prompt_ids(PROMPTS, 4)
    greedy: dict[str, Any] = {"sampling": Sampling(max_tokens=4, temperature=0.0), "stop_ids": [0], "seconds": 9.0}
    rows = engine.complete_all(prompts, n=3, seeds=[1, 2, 3], **greedy)
    assert [len(row) for row in rows] == [3, 3, 3]
    for prompt, row in zip(prompts, rows, strict=True):
        assert row[0] == row[1] == row[2] == engine.complete(prompt, n=1, seed=0, **greedy)[0]
        assert isinstance(row[0], Sampled)


def raises(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("method", "fault", "said"),
    [
        ("update_weights", raises(RuntimeError("no space")), r"failed to load weights \S+-7: RuntimeError: no space"),
        ("reset_prefix_cache", lambda: False, "keeps keys and values of old weights"),
        (CHECK, lambda: "another", r"has weights another after an update to \S+-7"),
    ],
)
def test_an_update_that_fails_ends_the_run(
    llm: PlayedLLM, tmp_path: Path, method: str, fault: Callable[[], Any], said: str
) -> None:
    llm.fault[method] = fault
    sampler = sampler_of(tmp_path)
    with pytest.raises(StoppedByCheck, match=rf"vLLM in this process {said}[\s\S]*then --resume"):
        sampler.sync(TinyPolicy(), 7)
    assert llm.calls.count("start_weight_update") == 1, "nothing is tried again"
    assert llm.calls[-1] == "shutdown"
    sampler.close()


def spoilt(llm: PlayedLLM, change: Callable[[Any], Any]) -> Callable[[], Any]:
    def answer() -> Any:
        how = SimpleNamespace(n=2, max_tokens=4, temperature=1.0, seed=0)
        found = llm._answer(TinyPolicy().prompt_ids([PROMPTS[0]], 4)[0], how)
        change(found)
        return [found]

    return answer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: answer.outputs.pop(), "gave 1 responses where 2 were asked for"),
        (
            lambda answer: setattr(answer.outputs[0], "finish_reason", "abort"),
            "gave no responses: finish_reason is abort",
        ),
        (lambda answer: setattr(answer.outputs[0], "token_ids", []), "gave no responses: 0 tokens with"),
        (lambda answer: answer.outputs[0].logprobs.pop(), "gave no responses"),
        (lambda answer: setattr(answer.outputs[0], "logprobs", None), "gave no responses"),
    ],
)
def test_what_is_no_answer(llm: PlayedLLM, change: Callable[[Any], Any], said: str) -> None:
    llm.fault["generate"] = spoilt(llm, change)
    prompts = TinyPolicy().prompt_ids(PROMPTS[:1], 4)
    with pytest.raises(Trouble, match=said):
        InProcess("m").complete_all(prompts, n=2, sampling=Sampling(max_tokens=4), seeds=[1], stop_ids=[0], seconds=9.0)


def test_what_would_be_refused_again_is_the_plugins_error(llm: PlayedLLM) -> None:
    engine, sampling = InProcess("m"), Sampling(max_tokens=4)
    [prompt] = TinyPolicy().prompt_ids(PROMPTS[:1], 4)
    llm.fault["generate"] = spoilt(llm, lambda answer: answer.prompt_token_ids.append(5))
    with pytest.raises(PluginError, match="read the tokens"):
        engine.complete(prompt, n=2, sampling=sampling, seed=0, stop_ids=[0], seconds=9.0)
    llm.fault["generate"] = raises(ValueError("the prompt is too long"))
    with pytest.raises(PluginError, match="refused to give 2 responses: the prompt is too long"):
        engine.complete(prompt, n=2, sampling=sampling, seed=0, stop_ids=[0], seconds=9.0)
    llm.fault["generate"] = list
    with pytest.raises(Trouble, match="answered 0 of 1 prompts"):
        engine.complete(prompt, n=2, sampling=sampling, seed=0, stop_ids=[0], seconds=9.0)


def test_a_killed_engine_and_a_silent_one_are_noticed(llm: PlayedLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own call never returns when its process is killed meanwhile."""
    monkeypatch.setattr(colocated, "_LOOK_SECONDS", 0.02)
    engine, ended = InProcess("m"), Event()
    llm.fault["update_weights"] = ended.wait
    with pytest.raises(Trouble, match=r"waited 0.1 s for vLLM in this process to load weights v"):
        engine.update(["path"], "v", seconds=0.1)
    llm.resources.engine_dead = True
    with pytest.raises(Trouble, match="died while asked to load weights v"):
        engine.update(["path"], "v", seconds=60.0)
    ended.set()


def test_other_weights_than_it_says_end_the_run(llm: PlayedLLM, tmp_path: Path) -> None:
    llm.fault["update_weights"] = lambda: None  # loads nothing
    sampler = sampler_of(tmp_path, probe_limit=1e-3)
    sampler.sync(TinyPolicy(context=alignkit.Context(seed=8)), 0)
    with pytest.raises(StoppedByCheck, match="its log-probabilities are"):
        sampler.generate(PROMPTS, n=2, sampling=Sampling(max_tokens=8), seed=0)
    sampler.close()


def test_an_algorithm_trains_with_it(llm: PlayedLLM, tmp_path: Path) -> None:
    algorithm: Any = registry().load("optimizer", "grpo")
    options = {"iterations": 2, "batch_size": 3, "group_size": 2, "minibatch_size": 3, "learning_rate": 0.02}
    optimizer = algorithm(algorithm.Config(**options), policy=TinyPolicy(), reward=TinyReward())
    sampler, out = sampler_of(tmp_path), tmp_path / "out"
    alignkit.train(optimizer, PROMPTS, sampling=Sampling(max_tokens=8), sampler=sampler, out=out, progress=False)
    sampler.close()
    assert llm.calls.count("update_weights") == 2
    assert max(record["sampler_kl"] for record in steps_of(out)) < 1e-8


def test_the_environment_is_as_before_and_vllm_gets_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    before = dict(os.environ)
    with colocated._environment():
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1", "the engine would seed our random numbers"
        assert os.environ["ALIGNKIT_VLLM_OWNER"] == str(os.getpid())
        assert (os.environ["VLLM_LOGGING_LEVEL"], os.environ["VLLM_WORKER_MULTIPROC_METHOD"]) == ("DEBUG", "spawn")
        os.environ["LD_PRELOAD"] = "of-vllm.so"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("urls", ["http://127.0.0.1:9"]),
        ("python", sys.executable),
        ("command", ["vllm", "serve"]),
        ("ahead", 1),
        ("start_seconds", 5.0),
        ("restarts", 1),
        ("concurrency", 3),
        ("transfer", "ipc"),
    ],
)
def test_options_of_a_server_are_refused(llm: PlayedLLM, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option}: has no effect without colocated = false"):
        VLLMOptions(colocated=True, **{option: value})


def test_several_processes_and_a_missing_vllm_are_refused(llm: PlayedLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert VLLMOptions(colocated=True, flags=("--max-model-len", "64")).colocated
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"colocated: several processes[\s\S]*start a server"):
        VLLMOptions(colocated=True)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delitem(sys.modules, "vllm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"colocated: vLLM is not installed[\s\S]*give sampler.python instead"):
        VLLMOptions(colocated=True)


ENGINE = """
import multiprocessing, os, sys, time
from alignkit_vllm_worker import end_with_parent

def engine():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    os.environ.update({} if sys.argv[1] == "nobody" else {"ALIGNKIT_VLLM_OWNER": str(os.getpid())})
    end_with_parent()
    multiprocessing.get_context("spawn").Process(target=engine).start()
    time.sleep(600)
"""


@pytest.mark.parametrize(("owner", "left"), [("training", 0), ("nobody", 1)])
def test_an_engine_of_a_training_that_is_killed_ends(owner: str, left: int, tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(ENGINE, encoding="utf-8")
    training = subprocess.Popen([sys.executable, str(script), owner], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    engine = psutil.Process(int(training.stdout.readline()))
    training.kill()
    training.wait()
    found = psutil.wait_procs([engine], timeout=1.0 if left else 30.0)[1]
    for one in found:
        one.kill()
    training.stdout.close()
    assert len(found) == left
