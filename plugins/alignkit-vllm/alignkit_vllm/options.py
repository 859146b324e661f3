"""Options of the sampler `vllm`. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from alignkit import AheadOptions, Config, Count, InputError, Natural, Positive
from alignkit.ops import Mismatch


@dataclass(frozen=True, kw_only=True)
class MismatchOptions(Config):
    """Sampler and trainer disagree.

    The trainer computes the log-probabilities again; its ratio to the sampler weighs the advantages. Algorithms without
    advantages (online-dpo) need no weights and report the figures only.
    """

    mismatch: Mismatch = "sequence-mask"
    """off: no weights. token-truncate: each token's ratio, at most mismatch_cap. token-mask: each token's ratio, 0
    above mismatch_cap. sequence-mask: the whole response's ratio for all of its tokens, 0 above mismatch_cap."""
    mismatch_cap: Positive = 3.0
    """Largest ratio that counts."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions(Config):
    """The server that the run starts.

    It ends with the run, whatever ends the run.
    """

    python: str = ""
    """Python of the environment with vLLM; empty: the one that runs alignkit."""
    command: tuple[str, ...] = ()
    """What starts the server instead, such as `["vllm", "serve"]`; `--model`, `--port` and the other flags follow."""
    flags: tuple[str, ...] = ()
    """More flags for the server: `["--tensor-parallel-size", "4", "--max-model-len", "4096"]`."""
    model: str = ""
    """Folder or hub id of the model that the server starts with, before it gets the policy's weights: of the same
    architecture and tokens. Empty: a copy that the policy saves."""
    start_seconds: Positive = 900.0
    """Longest wait for a server to start, or for a given one to answer."""


@dataclass(frozen=True, kw_only=True)
class ColocatedOptions(Config):
    """vLLM beside the policy, in the training process.

    Both then share one environment and one device.
    """

    colocated: bool = False
    """Make a `vllm.LLM` in the training process instead of a server. On a GPU it sleeps while the policy trains, so
    that its keys and values and its weights leave the memory to the training."""

    def check(self) -> None:
        super().check()
        server = ("urls", "python", "command", "ahead", "start_seconds", "restarts", "concurrency", "transfer")
        self.counts_only_with("colocated = false", not self.colocated, *server)
        if self.colocated and os.environ.get("WORLD_SIZE", "1") != "1":
            what = "several processes can't each have vLLM beside them: it needs a device of its own then"
            fix = "leave it out and start a server (sampler.python), or give sampler.urls"
            raise InputError(what, where="colocated", fix=fix)
        if self.colocated and importlib.util.find_spec("vllm") is None:
            what = "vLLM is not installed in this environment"
            raise InputError(what, where="colocated", fix="install both in one, or give sampler.python instead")


@dataclass(frozen=True, kw_only=True)
class VLLMOptions(AheadOptions, MismatchOptions, ColocatedOptions, ServerOptions):
    """Responses come from vLLM, with the policy's weights."""

    noise: ClassVar[frozenset[str]] = frozenset(
        {"urls", "python", "command", "model", "start_seconds", "transfer_folder", "update_seconds", "sample_seconds"}
        | {"restarts", "concurrency", "transfer", "colocated"}
    )
    matters: ClassVar[tuple[str, ...]] = ("python", "urls", "colocated", "flags", "mismatch", "mismatch_cap", "ahead")

    urls: tuple[str, ...] = ()
    """Servers that are already running, such as `["http://node1:8000"]`; prompts are spread over them. Empty: the run
    starts one on this machine."""
    transfer: Literal["file", "nccl", "ipc"] = "file"
    """How weights go over. file: through transfer_folder, which works everywhere. nccl: from GPU to GPU. ipc: in the
    memory of the GPU that policy and server share. Both need vLLM in this environment too, and have never been run."""
    transfer_folder: str = "/dev/shm"
    """Folder for the weights on their way; every server must see it under this name."""
    update_seconds: Positive = 600.0
    """Longest step of a weight update."""
    sample_seconds: Positive = 1800.0
    """Longest wait for the responses to a prompt; with colocated, for those to a batch."""
    restarts: Natural = 2
    """How often in a run a server that died, or whose update failed, is started or updated again and the batch sampled
    again."""
    concurrency: Count = 64
    """Prompts under way at a time, per process."""
    probe_limit: Positive = 0.5
    """Stop the run (exit code 3) when, after an update, the server's log-probabilities of a probe are further than this
    from the policy's, in nats per token on average. Rounding in bfloat16 explains some hundredths, old weights much
    more."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("mismatch other than 'off'", self.mismatch != "off", "mismatch_cap")
        self.counts_only_with("an empty urls", not self.urls, "python", "command", "flags", "model")
        self.counts_only_with("an empty command", not self.command, "python")
        if "--enable-lora" in self.flags:
            what = "a server with LoRA layers takes no new weights below them"
            raise InputError(what, where="flags", fix="remove --enable-lora: a policy's adapter is merged on the way")
        if self.ahead and self.mismatch == "off":
            what = "rollouts of older weights need importance weights"
            raise InputError(what, where="ahead", fix="set it to 0, or mismatch to something else than 'off'")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise InputError(f"{url!r} is no address", where="urls", fix="write it like http://127.0.0.1:8000")
        self.counts_only_with("transfer = 'file'", self.transfer == "file", "transfer_folder", "restarts")
        if self.transfer != "file" and importlib.util.find_spec("vllm") is None:
            what = f"{self.transfer} needs vLLM in the environment of the training, and it is not installed here"
            raise InputError(what, where="transfer", fix='set it to "file", or install vLLM beside alignkit')
        if self.transfer == "file" and not Path(self.transfer_folder).is_dir():
            raise InputError("no such folder", where="transfer_folder", fix="name a folder that the servers see too")
        if self.python and not Path(self.python).expanduser().is_file():
            raise InputError("no such file", where="python", fix="give the path of the Python that has vLLM")
        if not (self.urls or self.python or self.command) and importlib.util.find_spec("vllm") is None:
            raise InputError(
                "vLLM is not installed in this environment",
                where="python",
                fix="give the Python of an environment that has it (it may pin other versions), or set sampler.urls",
            )
