"""Algorithms in a few steps with minibatches, in any number of processes.

    many_processes.py FOLDER LAST RESUME SHARD CASE...

Eleven groups, or five prompts a batch, go into no number of processes evenly, and the last minibatch is one group, so
that all processes but one have nothing to do in it.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from threaded import Threaded

from alignkit import AheadOptions, build_component, make_context
from alignkit.interfaces import Feed
from alignkit.ops import process_index, start_processes
from alignkit.options import Sampling
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.testing.material import groups_for, prompts
from alignkit.testing.runs import weights
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed, RolloutFeed
from alignkit.training.processes import in_first

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from alignkit.interfaces import Optimizer, Policy

OFFLINE = {"learning_rate": 0.01, "minibatch_size": 5, "n_epochs": 2}
ONLINE = {"learning_rate": 1e-4, "iterations": 2, "batch_size": 5, "group_size": 4, "minibatch_size": 2}
REUSED = {**ONLINE, "n_epochs": 2}
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "sft": ("sft", OFFLINE),
    "bradley-terry": ("bradley-terry", OFFLINE),
    "dpo": ("dpo", OFFLINE),
    "kto": ("kto", OFFLINE),
    "ppo": ("ppo", {**REUSED, "critic": "policy"}),
    "ppo-shared": ("ppo", {**REUSED, "critic": "shared"}),
    "grpo": ("grpo", REUSED),
    "dapo": ("dapo", REUSED),
    "online-dpo": ("online-dpo", REUSED),
    "grpo-ahead": ("grpo", {**REUSED, "iterations": 3}),
    "ppo-long": ("ppo", {**REUSED, "iterations": 8, "critic": "policy"}),
    "grpo-ahead-long": ("grpo", {**REUSED, "iterations": 8}),
}
SECOND_STEP = threading.Event()
LIMIT = 8.0
SMALL = {**OFFLINE, "learning_rate": 1e-4}
MODELS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "hf-sft": ("sft", SMALL),
    "hf-bradley-terry": ("bradley-terry", SMALL),
    "hf-dpo": ("dpo", SMALL),
    "hf-kto": ("kto", SMALL),
    "hf-ppo": ("ppo", {**REUSED, "critic": "policy"}),
    "hf-ppo-shared": ("ppo", {**REUSED, "critic": "shared"}),
    "hf-ppo-branch": ("ppo", {**REUSED, "critic_layers": 1}),
    "hf-grpo": ("grpo", REUSED),
    "hf-online-dpo": ("online-dpo", REUSED),
    "lora-sft": ("sft", SMALL),
    "lora-bradley-terry": ("bradley-terry", SMALL),
    "lora-dpo": ("dpo", SMALL),
    "lora-kto": ("kto", SMALL),
    "lora-ppo": ("ppo", {**REUSED, "critic": "policy"}),
    "lora-ppo-shared": ("ppo", {**REUSED, "critic": "shared"}),
    "lora-ppo-branch": ("ppo", {**REUSED, "critic_layers": 1}),
    "lora-online-dpo": ("online-dpo", REUSED),
    "lora-untied-grpo": ("grpo", REUSED),
    "untied-sft": ("sft", SMALL),
    "untied-bradley-terry": ("bradley-terry", SMALL),
    "untied-dpo": ("dpo", SMALL),
    "untied-kto": ("kto", SMALL),
    "untied-ppo": ("ppo", {**REUSED, "critic": "policy"}),
    "untied-ppo-branch": ("ppo", {**REUSED, "critic_layers": 1}),
    "untied-online-dpo": ("online-dpo", REUSED),
    "untied-ppo-shared": ("ppo", {**REUSED, "critic": "shared"}),
}
MIXED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "bfloat16-sft": ("sft", SMALL),
    "bfloat16-ppo": ("ppo", {**REUSED, "critic": "shared"}),
}
"""With a transformers model: all weights or LoRA, the head tied to the embedding or not."""


def trained(case: str, folder: Path, *, last: int = 0, resume: bool = False, shard: bool = False) -> dict[str, Any]:
    """Trains an algorithm; with `last`, the process kills itself in that step, before its checkpoint.

    Returns:
        loss, grad_norm: of each step. weights: all trained values on one axis.
    """
    name, settings = (CASES | MODELS | MIXED)[case]
    policy = TinyPolicy(context=make_context(seed=1)) if case in CASES else _policy(folder, case)
    spec = {"plugin": name, **settings, **({"save_every": 1} if last or resume else {})}
    optimizer = build_component("optimizer", spec, policy=policy, reward=TinyReward())
    if case in CASES and optimizer.consumes is not Feed.ROLLOUTS:
        for model in (optimizer, *filter(None, [optimizer.reference])):
            for module in model.modules().values():
                module.double()
    log: list[Mapping[str, float]] = []

    def on_step(record: Mapping[str, float]) -> None:
        log.append(record)
        if record["step"] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if record["step"] >= 2:
            SECOND_STEP.set()

    feed = _feed(optimizer, policy, Threaded(AheadOptions(ahead=1)) if "ahead" in case else None)
    train(optimizer, feed, folder=folder / case, seed=5, on_step=on_step, resume=resume, shard=shard)
    if process_index() == 0:
        optimizer.save(folder / f"{case}-saved")
    found = {figure: [record[figure] for record in log] for figure in ("loss", "grad_norm")}
    return {**found, "weights": weights(optimizer)}


def _policy(folder: Path, case: str) -> Policy[Any]:
    from alignkit.testing.tiny_hf import write_tiny_llama

    path = folder / "llama"
    in_first(lambda: None if path.exists() else write_tiny_llama(path))
    spec: dict[str, Any] = {"plugin": "hf", "model": str(path)}
    if case.startswith("bfloat16"):
        spec["dtype"] = "bfloat16"
    if case.startswith("lora"):
        spec["lora"] = {"r": 4}
    found: Any = build_component("policy", spec)
    if "untied" in case:
        lm = found.raw.lm
        lm.config.tie_word_embeddings = False
        lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach().clone())
    policy: Policy[Any] = found
    return policy


def _feed(optimizer: Optimizer[Any], policy: Policy[Any], sampler: Threaded | None = None) -> OfflineFeed | RolloutFeed:
    if optimizer.consumes is not Feed.ROLLOUTS:
        groups = groups_for(optimizer.consumes)
        return OfflineFeed(list(islice(groups * 3, 11)), policy)
    assert optimizer.reward is not None
    sampling = Sampling(max_tokens=8)
    return RolloutFeed(
        prompts(), policy, optimizer.reward, sampling=sampling, options=optimizer.config, seed=5, sampler=sampler
    )


def started(
    folder: Path, processes: int, cases: Iterable[str], *, last: int = 0, resume: bool = False, shard: bool = False
) -> list[int]:
    """Trains the cases one after the other in several processes; returns their exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, __file__, str(folder), str(last), str(int(resume)), str(int(shard)), *cases]
    return [process.wait(timeout=900) for process in processes_of(words, processes)]


def killed(folder: Path, processes: int, case: str, steps: Sequence[int]) -> list[int]:
    """Has all processes killed in each of the steps, resumes after each, and goes on to the end; returns exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    moments = [f"{step}:{port}" for step, port in zip((*steps, 0), free_ports(len(steps) + 1), strict=True)]
    words = [sys.executable, __file__, "again", str(folder), case, *moments]
    return [process.wait(timeout=600) for process in processes_of(words, processes)]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def processes_of(words: Sequence[str], count: int, **more: Any) -> list[subprocess.Popen[bytes]]:
    """Starts a command in processes that find each other."""
    [port] = free_ports(1)
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(words, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **more)
        for rank in range(count)
    ]


def results(folder: Path, processes: int, case: str) -> list[dict[str, Any]]:
    """What `trained` returned in each process."""
    return [torch.load(folder / f"{case}-{rank}.pt") for rank in range(processes)]


def largest_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest one of all losses, gradient norms and weights."""
    pairs = ((torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
    return max(float((left - right).abs().max()) for left, right in pairs)


def fill_the_disk() -> None:
    """From now on this process can't write its part of a checkpoint."""
    from torch.distributed.checkpoint import filesystem

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    filesystem._write_item = refuse  # type: ignore[assignment]


def hold_the_disk() -> None:
    """From now on nothing is written to a checkpoint before the second step is done."""
    from torch.distributed.checkpoint import filesystem

    write = filesystem._write_item

    def later(*given: Any, **named: Any) -> Any:
        if not SECOND_STEP.wait(60):
            raise RuntimeError("the training waits for the checkpoint")
        return write(*given, **named)

    filesystem._write_item = later  # type: ignore[assignment]


def write_longer_than_anybody_waits() -> None:
    """From now on processes wait for each other for `LIMIT` seconds, but for the first one's first file for longer."""
    from torch.distributed.checkpoint import filesystem

    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=LIMIT))
    if process_index() > 0:
        return
    saves, delays = (torch.save, filesystem._write_item), [1.5 * LIMIT]

    def slowly(save: Any) -> Any:
        def late(*given: Any, **named: Any) -> Any:
            if delays:
                time.sleep(delays.pop())
                Path(os.environ["SLOW_DISK"]).touch()
            return save(*given, **named)

        return late

    torch.save, filesystem._write_item = map(slowly, saves)


def main(folder: str, last: str, resume: str, shard: str, *cases: str) -> None:
    if os.environ.get("SLOW_DISK"):
        write_longer_than_anybody_waits()
    start_processes()
    torch.set_num_threads(1)
    if os.environ.get("FULL_DISK") == os.environ["RANK"]:
        fill_the_disk()
    if os.environ.get("HELD_DISK"):
        hold_the_disk()
    for case in cases:
        found = trained(case, Path(folder), last=int(last), resume=resume == "1", shard=shard == "1")
        torch.save(found, Path(folder) / f"{case}-{process_index()}.pt")


def again_and_again(folder: str, case: str, *moments: str) -> None:
    """For each step:port a process that resumes, and kills itself in that step (0: never). All are forked from this
    one, which has imported everything."""
    for moment in moments:
        step, port = moment.split(":")
        child = os.fork()
        if child == 0:
            os.environ["MASTER_PORT"] = port
            main(folder, step, "1", "0", case)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != (0 if step == "0" else -signal.SIGKILL):
            raise SystemExit(f"step {step} ended with {code}")


if __name__ == "__main__":
    again_and_again(*sys.argv[2:]) if sys.argv[1] == "again" else main(*sys.argv[1:])
