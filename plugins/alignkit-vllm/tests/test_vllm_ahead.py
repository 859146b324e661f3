"""The next batch under way at the server while this one is trained."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler
from scripted_vllm import ScriptedVLLM, steps_of

import alignkit
from alignkit import Context, InputError, Prompt, Sampling, StoppedByCheck, registry
from alignkit.testing import TinyPolicy, TinyReward

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit import GroupBatch

PROMPTS = [Prompt(text=text) for text in ("a red", "blue", "green")]
SAMPLING = Sampling(max_tokens=8)
SAMPLED = "/v1/completions"


def sampler_of(server: ScriptedVLLM, folder: Path, **more: Any) -> VLLMSampler:
    return VLLMSampler(VLLMOptions(urls=(server.url,), transfer_folder=str(folder), **more))


def trained(folder: Path, fault: Any = None) -> tuple[list[GroupBatch], list[str]]:
    """What PPO prepares in three iterations, and the routes that were called."""
    algorithm: Any = registry().load("optimizer", "ppo")
    seen: list[GroupBatch] = []

    class Watched(algorithm):  # type: ignore[misc]
        def prepare(self, batch: GroupBatch) -> GroupBatch:
            seen.append(super().prepare(batch))
            return seen[-1]

    options = {"iterations": 3, "batch_size": 2, "group_size": 4, "minibatch_size": 2, "learning_rate": 0.02}
    optimizer = Watched(algorithm.Config(critic="policy", **options), policy=TinyPolicy(), reward=TinyReward())
    folder.mkdir()
    with ScriptedVLLM(fault) as server:
        sampler = sampler_of(server, folder, ahead=1)
        alignkit.train(optimizer, PROMPTS, sampling=SAMPLING, sampler=sampler, progress=False, out=folder / "out")
        sampler.close()
        return seen, server.routes()


@pytest.mark.slow
def test_versions_are_one_behind_and_a_request_that_fails_meanwhile_is_asked_again(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole")
    assert [batch.version for batch in whole] == [0, 0, 1]
    log = steps_of(tmp_path / "whole" / "out")
    assert log[0]["sampler_kl"] < 1e-8
    assert min(record["sampler_kl"] for record in log[-2:]) > 1e-5, "the last batch is of older weights"
    # Each batch takes a probe and two requests: the fifth is one of the second batch, sampled in the thread.
    found, routes = trained(
        tmp_path / "failed", lambda _, route, before: (500, "") if (route, before) == (SAMPLED, 5) else None
    )
    assert routes.count("/update_weights") == 4, "three times for new weights, once after trouble"
    assert [batch.groups for batch in found] == [batch.groups for batch in whole]


def test_new_weights_wait_for_what_is_under_way(tmp_path: Path) -> None:
    go_on = threading.Event()

    def hold(_: ScriptedVLLM, route: str, before: int) -> None:
        if route == SAMPLED and before:  # the first is the probe
            go_on.wait(20)

    with ScriptedVLLM(hold) as server:
        sampler = sampler_of(server, tmp_path, ahead=1)
        policy = TinyPolicy()
        sampler.sync(policy, 0)
        finish = sampler.begin(PROMPTS, n=2, sampling=SAMPLING, seed=0)
        threading.Timer(0.2, go_on.set).start()
        sampler.sync(TinyPolicy(context=Context(seed=7)), 1)
        assert server.routes()[-7:-6] == [SAMPLED], "an update came while responses were sampled"
        assert server.routes().count("/update_weights") == 2
        batch = finish()
        assert batch.version == 0
        sampler.sync(policy, 0)
        assert batch.groups == sampler.generate(PROMPTS, n=2, sampling=SAMPLING, seed=0).groups
        sampler.close()


def test_what_is_under_way_ends_with_the_sampler(tmp_path: Path) -> None:
    """Trouble after close starts and updates nothing any more."""
    closing = threading.Event()

    def fail(_: ScriptedVLLM, route: str, before: int) -> Any:
        if route == SAMPLED and before:
            closing.wait(20)
            return 500, "gone"
        return None

    with ScriptedVLLM(fail) as server:
        sampler = sampler_of(server, tmp_path, ahead=1, restarts=5)
        sampler.sync(TinyPolicy(), 0)
        finish = sampler.begin(PROMPTS, n=2, sampling=SAMPLING, seed=0)
        threading.Timer(0.2, closing.set).start()
        sampler.close()
        with pytest.raises(StoppedByCheck, match="look at the server"):
            finish()
        assert server.routes().count("/update_weights") == 1


def test_it_needs_importance_weights() -> None:
    with pytest.raises(InputError, match="ahead: rollouts of older weights need importance weights"):
        VLLMOptions(urls=("http://a",), ahead=1, mismatch="off")
