"""The clipped losses of PPO, Schulman et al., arXiv:1707.06347, one figure a token; the caller takes the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def clipped_policy_loss(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range)) with ratio = exp(log_ratio): equation 7,
    negated.

    Args:
        log_ratio: [R] log-probability under the policy minus that under the policy that sampled.
        advantages: [R]. clip_range: > 0.

    Returns:
        [R]
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))


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
