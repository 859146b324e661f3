"""The mismatch between an engine that sampled and the policy: importance weights, and how far both are apart.

The weights are those of TRL's `vllm_importance_sampling_mode`. A cap bounds the variance and lets in a bias; masking a
whole response also keeps its tokens from being weighed one by one, which is biased towards the sampler's states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignkit.ops.distributed import sum_over_processes
from alignkit.ops.kl import kl_estimate

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.ops.choices import Mismatch

_LARGEST_LOG = 20.0


def mismatch_weights(batch: GroupBatch, how: Mismatch, cap: float) -> tuple[Tensor, dict[str, float]]:
    """(weights [R] of the advantages, figures over all processes), from the ratio of the policy to the sampler.

    `token-truncate` takes each token's ratio, at most `cap`; `token-mask` makes it 0 above; `sequence-mask` takes the
    ratio of the whole response for all of its tokens, 0 above; `off` is 1.

    Figures: `sampler_kl`, the KL of the sampler to the policy in nats per token; `mismatch_share`, the share of tokens
    (or responses) whose ratio is above `cap`; `effective_share`, the effective sample size of the weights (with `off`:
    of the ratios) over their number.

    Raises:
        ValueError: the batch lacks logprobs or sampler_logprobs.
    """
    if batch.logprobs is None or batch.sampler_logprobs is None:
        raise ValueError("the mismatch needs logprobs and sampler_logprobs: prepare the rollouts of a sampler first")
    moved = batch.logprobs - batch.sampler_logprobs
    whole = how == "sequence-mask"
    ratios = (batch.sum_by_response(moved) if whole else moved).clamp(max=_LARGEST_LOG).exp()
    beyond = ratios > cap
    if how == "token-truncate":
        ratios = ratios.clamp(max=cap)
    elif how != "off":
        ratios = ratios.masked_fill(beyond, 0.0)
    kl = kl_estimate(batch.sampler_logprobs, batch.logprobs, "k3")
    parts = (kl.sum(), beyond.sum(), ratios.sum(), ratios.square().sum())
    counts = ratios.new_tensor([batch.num_tokens, len(ratios)])
    total = sum_over_processes(torch.cat([torch.stack([part.to(kl.dtype) for part in parts]), counts])).tolist()
    kl_sum, above, sum_of_weights, sum_of_squares, tokens, units = total
    figures = {
        "sampler_kl": kl_sum / tokens,
        "mismatch_share": above / units,
        "effective_share": sum_of_weights**2 / (units * sum_of_squares) if sum_of_squares else 0.0,
    }
    weights = ratios[batch.response_index] if whole else ratios
    return (torch.ones_like(weights) if how == "off" else weights), figures
