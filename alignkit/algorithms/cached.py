"""Log-probabilities of a frozen policy on fixed data, kept on disk, so that no run computes them a second time.

A file is named by the sha256 of all that its numbers depend on: the policy's digest, the tokens, how they are split
into groups and passes, the temperature, and how torch computes. Another weight, token or budget is another name, so
nothing ever goes stale; a file that can't be read is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignkit.algorithms.passes import policy_logprobs
from alignkit.ops.digests import digest_of_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Policy

logger = logging.getLogger(__name__)

_FIELDS = ("prompt_ids", "prompt_lengths", "response_ids", "lengths", "group_index")
_DIGESTS: WeakKeyDictionary[Any, tuple[list[int], str]] = WeakKeyDictionary()


def cached_logprobs(policy: Policy[Any], batch: GroupBatch, max_tokens: int, folder: Path | None) -> Tensor:
    """[R] log-probabilities of the response tokens under a frozen policy, bit for bit those of `policy_logprobs`.

    Args:
        max_tokens: token budget of one pass.
        folder: they are in its folder `logprobs`; None computes without them.
    """
    if folder is None:
        return policy_logprobs(policy, batch, max_tokens)
    path = folder / "logprobs" / f"{_key(policy, batch, max_tokens)}.safetensors"
    found = _read(path)
    if found is not None and found.shape == batch.response_ids.shape:
        return found.to(batch.device)
    logprobs = policy_logprobs(policy, batch, max_tokens)
    _write(path, logprobs)
    return logprobs


def _key(policy: Policy[Any], batch: GroupBatch, max_tokens: int) -> str:
    tokens = digest_of_tensors({name: getattr(batch, name) for name in _FIELDS})
    kind = f"{torch.__version__} {batch.device.type} {torch.get_num_threads()} {torch.get_float32_matmul_precision()}"
    said = f"{_policy_digest(policy)} {tokens} {batch.temperature!r} {max_tokens} {kind}"
    return hashlib.sha256(said.encode()).hexdigest()


def _policy_digest(policy: Policy[Any]) -> str:
    """The policy's digest, taken again only when torch says that a tensor has been written to."""
    modules = policy.modules().values()
    versions = [t._version for module in modules for t in (*module.parameters(), *module.buffers())]
    known, digest = _DIGESTS.get(policy, ([], ""))
    if known != versions:
        digest = policy.digest()
        _DIGESTS[policy] = versions, digest
    return digest


def _read(path: Path) -> Tensor | None:
    try:
        return load_file(path)["logprobs"]
    except (OSError, KeyError, SafetensorError):
        return None


def _write(path: Path, logprobs: Tensor) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"logprobs": logprobs.cpu().contiguous()}, unfinished)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:  # a full or read-only disk stops no run
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        logger.warning("reference log-probabilities are not kept: %s", error)
