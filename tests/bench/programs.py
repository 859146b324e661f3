"""The two programs of every workload by one name: what makes a workload ready, and what is kept of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import torch

from tests.bench.clock import PeakMemory
from tests.bench.flops import Groups, Work, one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.clock import Clock
    from tests.bench.material import Material
    from tests.bench.workloads import Settings, Workload

Side = Literal["ours", "peer"]


def prepare(side: Side, workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """The workload made ready by alignkit or by TRL: what is returned runs its steps on the clock."""
    from tests.bench import ours, peer, peer_online

    if side == "ours":
        return ours.prepare(workload, material, settings, clock)
    peer.quiet()
    runner = getattr(peer, workload.peer, None) or getattr(peer_online, workload.peer)
    made: Callable[[], None] = runner(workload, material, settings, clock)
    return made


def step_lengths(workload: Workload, material: Material, settings: Settings) -> list[Groups]:
    """Prompt and response lengths of each step's groups; responses to be sampled count with their longest length."""
    from tests.bench.peer import encoded

    if workload.rows == "prompts":
        tokenizer = material.tokenizer()
        prompts = material.prompts(workload.groups * settings.steps)
        responses = [workload.max_new] * workload.responses
        groups: Groups = [(len(tokenizer(prompt.text)["input_ids"]), responses) for prompt in prompts]
    else:
        batch = encoded(workload, material, settings)
        lengths = iter(torch.split(batch.lengths, batch.group_sizes.tolist()))
        groups = [(prompt, next(lengths).tolist()) for prompt in batch.prompt_lengths.tolist()]
    return [groups[start : start + workload.groups] for start in range(0, len(groups), workload.groups)]


def peer_work(workload: Workload, groups: Groups) -> Work:
    """What TRL goes over: a row for each response, and for each pair of a ranking two."""
    return one_by_one(groups, repeats=workload.responses - 1 if workload.peer == "reward" else 1)


def measure(side: Side, workload: Workload, material: Material, settings: Settings, clock: Clock) -> dict[str, Any]:
    """Runs a workload and returns its figures, in seconds and bytes."""
    started = time.perf_counter()
    run = prepare(side, workload, material, settings, clock)
    clock.load_seconds = time.perf_counter() - started
    with PeakMemory(settings.device) as memory:
        run()
    return {**clock.figures(), "peak_bytes": memory.bytes}
