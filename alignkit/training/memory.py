"""The token budget of a micro-batch: the free memory divided by a cautious estimate per token.

The activations stored for a backward pass are about the inputs and outputs of the weight matrices (arXiv:2205.05198
counts them for one architecture). Deliberately simpler: all matrices except embeddings count alike, in any
architecture, at 8 bytes per number. Six architectures in float32 store 0.6 to 1.1 times that; bfloat16 and gradient
checkpointing store less.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from alignkit.ops.distributed import num_processes

if TYPE_CHECKING:
    from collections.abc import Iterable

BYTES_OF_A_NUMBER = 8
"""Float32, twice: norms, activation functions and rotations store their inputs too."""
BYTES_OF_A_WEIGHT = 16
"""Gradient, AdamW's two moments and a float32 copy, all allocated in the first step."""
USABLE = 0.8
"""Share of the free memory to use."""
EXPERTS = 8
"""Assumed maximum of experts per token in a mixture."""
LOWEST = 512
HIGHEST = {"cpu": 16384, "cuda": 32768}
"""More tokens per pass are not faster."""
CGROUP = Path("/sys/fs/cgroup")


def token_budget(modules: Iterable[torch.nn.Module], device: torch.device) -> tuple[int, str]:
    """(tokens per micro-batch, reason). A power of two, so that small changes of the free memory don't matter.

    If the free memory is not known, the maximum, which is halved when memory runs out.
    """
    modules, highest = list(modules), HIGHEST.get(device.type, HIGHEST["cpu"])
    free, token = free_bytes(device), bytes_per_token(modules)
    if free is None:
        return highest, "the free memory is unknown"
    weights = sum(p.numel() for p in _parameters(modules) if p.requires_grad)
    room = USABLE * free - BYTES_OF_A_WEIGHT * weights
    fitting = max(1, int(room / max(1, token)))
    budget = max(LOWEST, min(highest, 1 << (fitting.bit_length() - 1)))
    return budget, f"{free / 2**30:.1f} GiB are free, a token takes up to {token / 2**10:.0f} KiB"


def bytes_per_token(modules: Iterable[torch.nn.Module]) -> int:
    """Upper estimate of what a training pass stores per token, from the shapes of the weights."""
    modules = list(modules)
    embeddings = {
        id(module.weight) for root in modules for module in root.modules() if isinstance(module, torch.nn.Embedding)
    }
    numbers = 0
    for parameter in _parameters(modules):
        if parameter.ndim >= 2 and id(parameter) not in embeddings:
            together = 1 if parameter.ndim == 2 else min(EXPERTS, parameter.shape[0])
            numbers += together * sum(parameter.shape[-2:])
    return BYTES_OF_A_NUMBER * numbers


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process can still allocate on a device; None if unknown."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type == "cpu":
        return min([int(psutil.virtual_memory().available), *_container_bytes()]) // num_processes()
    return None


def _container_bytes() -> list[int]:
    """What a container's limit leaves, if there is one. Cached files count as free."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return [max(0, limit - used + int(kinds["inactive_file"]))]
    except (OSError, ValueError, KeyError):
        return []


def _parameters(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Parameter]:
    return list({id(p): p for module in modules for p in module.parameters()}.values())
