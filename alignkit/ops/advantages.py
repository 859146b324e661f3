"""Advantages and the statistics around them, on the flat token axis.

GAE: Schulman et al., arXiv:1506.02438. Bootstrapping after a cut: Pardo et al., arXiv:1712.00378. Whitening with the
population variance: Huang et al., arXiv:2403.17031. Leave-one-out: Kool et al. 2019 and Ahmadian et al.,
arXiv:2402.14740. Means and variances of a batch are over all processes; a group is always in one process.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from alignkit.ops.distributed import sum_over_processes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

EPSILON = 1e-8


def gae(
    token_rewards: Tensor, values: Tensor, lengths: Tensor, next_values: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation of all responses at once.

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = delta_t + gamma * gae_lambda * A_{t+1}, where V_t is the value
    before token t. After the last token V is `next_values`.

    Args:
        token_rewards: [R] reward of each token.
        values: [R] value of the state in which each token is chosen.
        lengths: [S] tokens of each response, all >= 1.
        next_values: [S] value after each response's last token: 0 if the response is finished, an estimate of what
            would have followed if it was cut off.
        gamma: discount factor in [0, 1]. gae_lambda: in [0, 1]; 0 trusts the values, 1 the rewards.

    Returns:
        [R] advantages and [R] returns, the advantages plus the values.
    """
    lasts = lengths.cumsum(0) - 1
    following = values.roll(-1)
    following[lasts] = next_values.to(values.dtype)
    deltas = token_rewards + gamma * following - values
    response = torch.repeat_interleave(lengths, output_size=values.shape[0])
    step = torch.arange(values.shape[0], device=values.device) - (lasts - lengths + 1)[response]
    grid = deltas.new_zeros(int(lengths.max()), lengths.shape[0])
    grid[step, response] = deltas
    for t in range(grid.shape[0] - 2, -1, -1):
        grid[t] += gamma * gae_lambda * grid[t + 1]
    advantages = grid[step, response]
    return advantages, advantages + values


def rewards_to_go(token_rewards: Tensor, lengths: Tensor) -> Tensor:
    """[R] the sum of each token's reward and all later ones in its response. lengths: [S]."""
    return gae(token_rewards, torch.zeros_like(token_rewards), lengths, lengths * 0, gamma=1.0, gae_lambda=1.0)[0]


def group_mean(x: Tensor, group_index: Tensor) -> Tensor:
    """[S] -> [S]: the mean of each response's group.

    Computed in float64, so that the mean of equal rewards is exactly the reward and their advantages exactly 0.

    Args:
        x: [S]. group_index: [S], ascending from 0.
    """
    return _group_mean(x.double(), group_index).to(x.dtype)


def leave_one_out_mean(x: Tensor, group_index: Tensor) -> Tensor:
    """[S] -> [S]: the mean of the other responses in the group; in a group of one, the response's own value."""
    exact, sizes = x.double(), group_index.bincount()[group_index]
    mean = _group_mean(exact, group_index)
    return (mean - (exact - mean) / (sizes - 1).clamp(min=1)).to(x.dtype)


def group_std(x: Tensor, group_index: Tensor) -> Tensor:
    """[S] -> [S]: the sample standard deviation (divisor n - 1) of each response's group; 0 for a group of one.

    Computed from deviations: a difference of squares cancels when the deviation is small.
    """
    deviations = x.double() - _group_mean(x.double(), group_index)
    sizes = group_index.bincount()[group_index]
    variance = _group_mean(deviations.square(), group_index) * sizes / (sizes - 1).clamp(min=1)
    return variance.sqrt().to(x.dtype)


def _group_mean(x: Tensor, group_index: Tensor) -> Tensor:
    sizes = group_index.bincount()
    sums = torch.zeros(len(sizes), dtype=x.dtype, device=x.device).index_add(0, group_index, x)
    return (sums / sizes)[group_index]


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, population variance and count of all values of `x`, of any shape, over all processes."""
    sums = sum_over_processes(torch.stack([x.sum(), x.new_tensor(float(x.numel()))]))
    mean, count = sums[0] / sums[1], sums[1]
    return mean, sum_over_processes((x - mean).square().sum()) / count, count


def whiten(x: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`x` scaled to variance 1 over all its values and all processes, and to mean 0 unless `shift_mean` is False.

    Args:
        x: values of any shape. shift_mean: False keeps the mean.
    """
    mean, variance, _ = moments(x)
    whitened = (x - mean) * (variance + EPSILON).rsqrt()
    return whitened if shift_mean else whitened + mean


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Share of the variance of the returns [R] that the values [R] explain: 1 is perfect, 0 no better than a constant.

    0 if the returns do not vary.
    """
    variance = moments(returns)[1]
    residual = moments(returns - values)[1]
    return float(1 - residual / variance) if variance > EPSILON else 0.0


class RunningMoments:
    """Mean and standard deviation of everything seen so far, over all processes (Chan et al.'s parallel update)."""

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0.0, 0.0, 0.0

    def update(self, x: Tensor) -> None:
        """Adds the values of `x`, of any shape."""
        mean, variance, count = (float(moment) for moment in moments(x))
        seen = self.count + count
        shift = mean - self.mean
        self.variance = (self.count * self.variance + count * variance + shift**2 * self.count * count / seen) / seen
        self.mean += shift * count / seen
        self.count = seen

    def normalize(self, x: Tensor) -> Tensor:
        """`x`, shifted and scaled by the mean and standard deviation seen so far."""
        return (x - self.mean) / math.sqrt(self.variance + EPSILON)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.mean, self.variance = (float(state[name]) for name in ("count", "mean", "variance"))
