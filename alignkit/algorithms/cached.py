"""Log-probabilities of a frozen policy on fixed data, cached on disk so that no run computes them twice.

The file name is the sha256 of everything its numbers depend on: the policy's digest, the tokens, their split into
groups and passes, the temperature, and how torch computes. Other weights, tokens or budgets give another name, so
nothing goes stale. An unreadable file is computed again.
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
from alignkit.ops.distributed import are_split
from alignkit.ops.flops import count_pass

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
        folder: the cache is its subfolder `logprobs`; None does not cache. Split weights have no digest and no cache.
    """
    if folder is None or are_split(policy.modules()):
        return policy_logprobs(policy, batch, max_tokens)
    path = folder / "logprobs" / f"{_key(policy, batch, max_tokens)}.safetensors"
    found = _read(path)
    if found is not None and found.shape == batch.response_ids.shape:
        count_pass(policy.modules(), batch, learns=False)  # what a run spends must not depend on runs before
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
    """The policy's digest, computed again only after a tensor has been written to."""
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
    except (OSError, SafetensorError) as error:  # a full or read-only disk must not stop a run
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        logger.warning("cannot cache the reference log-probabilities: %s", error)
