"""Losses of policy gradients and critics, per token; the caller takes the mean.

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
    """[R] -> [R]: the log-ratio of each token, or the sum or mean over the tokens of its response.

    Raises:
        ValueError: unknown level.
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
        advantages: [R]. clip_range: > 0. clip_range_high: > 0; None means clip_range.
        dual_clip: > 1; 0 means none.

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
    """-A * min(ratio, cap) * logprobs, with min(ratio, cap) a constant weight: every token keeps a gradient.

    Args:
        log_ratio, advantages, logprobs: [R]. cap: > 0.

    Returns:
        [R]
    """
    return -advantages * log_ratio.detach().exp().clamp(max=cap) * logprobs


def off_policy_mask(log_ratio: Tensor, advantages: Tensor, batch: GroupBatch, limit: float) -> Tensor:
    """[R] False for bad tokens (A < 0) of responses that the policy moved away from by more than `limit`.

    The distance is the mean of -log_ratio over a response's tokens. Source: DeepSeek-AI, arXiv:2512.02556, equation 9.

    Args:
        log_ratio, advantages: [R]. limit: in nats per token.
    """
    return (advantages >= 0) | (-pooled_log_ratio(log_ratio.detach(), batch, "sequence-mean") <= limit)


def aggregate(batch: GroupBatch, x: Tensor, how: Aggregation, loss_length: float = 1.0) -> Tensor:
    """[R] -> scalar, over the whole optimisation step: `token` is the mean over tokens; `response` the mean over
    responses of the mean over their tokens; `sum` the mean over responses of their sum, divided by `loss_length`.

    Raises:
        ValueError: unknown aggregation.
    """
    if how == "token":
        return batch.token_mean(x)
    if how == "response":
        return batch.response_mean(batch.sum_by_response(x) / batch.lengths)
    if how == "sum":
        return batch.response_mean(batch.sum_by_response(x)) / loss_length
    raise ValueError(f"no aggregation {how!r}: choose one of {', '.join(get_args(Aggregation))}")


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Half the larger of two squared errors: of the value, and of the value clipped to `clip_range` around the old one.

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
