"""Losses of policy gradients and critics, one figure a token; the caller takes the mean.

Clipping: Schulman et al., arXiv:1707.06347, with a higher upper end as in Yu et al., arXiv:2503.14476, and a bound on
the loss of bad responses as in Ye et al., arXiv:1912.09729. Truncated importance weights: Chen et al., arXiv:2506.13585
(CISPO). Ratios of whole responses: Ahmadian et al., arXiv:2402.14740; their geometric mean over the tokens: Zheng et
al., arXiv:2507.18071 (GSPO).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch

from alignkit.ops.choices import Aggregation, RatioLevel

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.batch import GroupBatch


def pooled_log_ratio(log_ratio: Tensor, batch: GroupBatch, level: RatioLevel) -> Tensor:
    """[R] -> [R]: each token's own log-ratio, or that of its whole response: the sum over its tokens, or their mean.

    Raises:
        ValueError: no such level.
    """
    if level == "token":
        return log_ratio
    sums = batch.sum_by_response(log_ratio)
    if level == "sequence":
        return sums[batch.response_index]
    if level == "sequence-mean":
        return (sums / batch.lengths)[batch.response_index]
    raise ValueError(f"no level of the ratio {level!r}: choose one of {', '.join(get_args(RatioLevel))}")


def clipped_policy_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    clip_range: float,
    *,
    clip_range_high: float | None = None,
    dual_clip: float = 0.0,
) -> Tensor:
    """max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range_high)) with ratio = exp(log_ratio): equation 7,
    negated; where A < 0, at most -A * dual_clip.

    Args:
        log_ratio: [R] log-probability under the policy minus that under the policy that sampled.
        advantages: [R]. clip_range: > 0. clip_range_high: > 0, or None for clip_range.
        dual_clip: > 1, or 0 for none.

    Returns:
        [R]
    """
    ratio = log_ratio.exp()
    high = clip_range if clip_range_high is None else clip_range_high
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + high))
    if not dual_clip:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)


def truncated_policy_loss(log_ratio: Tensor, advantages: Tensor, logprobs: Tensor, cap: float) -> Tensor:
    """-A * min(ratio, cap) * logprobs, where the weight min(ratio, cap) is a constant: every token keeps a gradient.

    Args:
        log_ratio, advantages, logprobs: [R]. cap: > 0.

    Returns:
        [R]
    """
    return -advantages * log_ratio.detach().exp().clamp(max=cap) * logprobs


def off_policy_mask(log_ratio: Tensor, advantages: Tensor, batch: GroupBatch, limit: float) -> Tensor:
    """[R] False for bad tokens (A < 0) of responses that the policy has moved away from by more than `limit`.

    How far is the mean over a response's tokens of -log_ratio. Source: DeepSeek-AI, arXiv:2512.02556, equation 9.

    Args:
        log_ratio, advantages: [R]. limit: nats a token.
    """
    return (advantages >= 0) | (-pooled_log_ratio(log_ratio.detach(), batch, "sequence-mean") <= limit)


def aggregate(batch: GroupBatch, x: Tensor, how: Aggregation, loss_length: float = 1.0) -> Tensor:
    """[R] -> scalar, over the whole optimisation step: `token` is the mean over tokens; `response` the mean over
    responses of the mean over their tokens; `sum` the mean over responses of their sum, divided by `loss_length`.

    Raises:
        ValueError: no such way.
    """
    if how == "token":
        return batch.token_mean(x)
    if how == "response":
        return batch.response_mean(batch.sum_by_response(x) / batch.lengths)
    if how == "sum":
        return batch.response_mean(batch.sum_by_response(x)) / loss_length
    raise ValueError(f"no aggregation {how!r}: choose one of {', '.join(get_args(Aggregation))}")


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Half the larger of the squared errors of the value and of the value held within `clip_range` of the old one.

    Args:
        values, old_values, returns: [R]. clip_range: in units of the return; 0 does not clip.

    Returns:
        [R]
    """
    error = (values - returns).square()
    if clip_range:
        held = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (held - returns).square())
    return error / 2
