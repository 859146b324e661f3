"""What `test_vllm_colocated` runs in vLLM's own environment: syncs and batches, whose figures it writes as JSON.

`python colocated_child.py MODEL FOLDER`: `FOLDER/found.json` holds them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy
from alignkit_vllm.client import Trouble
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler

from alignkit import Context, InputError, Prompt, Sampling, StoppedByCheck
from alignkit.algorithms import policy_logprobs
from alignkit.testing.material import nudge

if TYPE_CHECKING:
    from alignkit import GroupBatch

FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "64")
PROMPTS = [Prompt(text="a short one"), Prompt(text="the cat sat on the mat. " * 12), Prompt(text="a short one")]


def sampled(sampler: VLLMSampler, **how: Any) -> GroupBatch:
    return sampler.generate(PROMPTS, n=4, sampling=Sampling(**{"max_tokens": 24, **how}), seed=3)


def texts(batch: GroupBatch) -> list[list[str]]:
    return [list(group.responses) for group in batch.groups]


def apart(policy: HFPolicy, batch: GroupBatch) -> float:
    assert batch.sampler_logprobs is not None
    return float((policy_logprobs(policy, batch, 10**6) - batch.sampler_logprobs).abs().max())


def children() -> list[psutil.Process]:
    """The engine's processes; Python's own tracker of shared memory stays until the end."""
    found = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in found if not any("resource_tracker" in word for word in child.cmdline())]


def refused(work: Any, *errors: type[Exception]) -> str:
    try:
        work()
    except errors as error:
        return str(error)
    return ""


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    policy = HFPolicy(HFOptions(model=model, dtype="float32"), Context(device="cpu"))
    options = VLLMOptions(colocated=True, flags=FLAGS, probe_limit=1e-3)
    sampler = VLLMSampler(options, Context(folder=folder))
    found: dict[str, Any] = {"apart": [], "again": [], "texts": [], "versions": []}
    before, environment = torch.get_rng_state(), dict(os.environ)
    for version in range(4):
        sampler.sync(policy, version)
        for temperature in (1.0, 0.7, 0.0):
            batch = sampled(sampler, temperature=temperature)
            found["apart"].append(apart(policy, batch))
            found["versions"].append(batch.version)
        first = sampled(sampler)
        found["again"].append(texts(sampled(sampler)) == texts(first))
        found["texts"].append(texts(first))
        if version == 0:
            found["random numbers"] = bool(torch.equal(torch.get_rng_state(), before))
            found["environment"] = dict(os.environ) == environment
        nudge(policy.modules(), size=0.02)
    [engine] = sampler._clients
    assert sampler._transfer is not None
    paths = sampler._transfer.paths
    found["wrong file"] = refused(lambda: engine.update(paths, "another-version", seconds=60.0), Trouble)
    found["after it"] = texts(sampled(sampler)) == found["texts"][-1]
    engines = children()
    sampler.close()
    found["left"] = len(psutil.wait_procs(engines, timeout=20)[1]) if engines else "no child was there"
    unknown = VLLMSampler(VLLMOptions(colocated=True, flags=("--port", "1")), Context(folder=folder))
    found["unknown flag"] = refused(lambda: unknown.sync(policy, 0), InputError)
    unknown.close()
    sampler.sync(policy, 9)
    for child in children():
        child.kill()
    found["killed"] = refused(lambda: sampled(sampler), StoppedByCheck)
    sampler.close()
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
