"""Selection among the rollouts of a prompt, and the figures of a batch of rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignkit.ops.advantages import moments
from alignkit.ops.distributed import sum_over_processes

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.batch import GroupBatch


def highest_of_groups(scores: Tensor, group_index: Tensor, count: int = 1) -> Tensor:
    """[S] bool: the `count` highest scores of each group; among equal scores the first ones.

    Args:
        scores: [S]. group_index: [S], ascending.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(group_index[order], stable=True)]
    sizes = torch.bincount(group_index)
    place = torch.arange(len(scores), device=scores.device) - (sizes.cumsum(0) - sizes)[group_index]
    return torch.zeros_like(group_index, dtype=torch.bool).index_fill(0, order[place < count], True)


def repeated_tokens(batch: GroupBatch, length: int = 4) -> tuple[int, int]:
    """(how many runs of `length` tokens stand earlier in their response, too, how many runs there are).

    As rep-n of Welleck et al., arXiv:1908.04319, but counted over all responses instead of averaged over them, so that
    short responses weigh little.
    """
    places = max(batch.num_tokens - length + 1, 0)
    first, last = batch.response_index[:places], batch.response_index[length - 1 :]
    starts = (first == last).nonzero().flatten()
    names, vocabulary = first[starts], int(batch.response_ids.max()) + 1
    for offset in range(length):  # equal beginnings get equal names: far quicker than unique(dim=0)
        names = torch.unique(names * vocabulary + batch.response_ids[starts + offset], return_inverse=True)[1]
    return len(names) - len(torch.unique(names)), len(names)


def rollout_figures(batch: GroupBatch) -> tuple[dict[str, float], float]:
    """(figures of a scored batch with `logprobs`, its number of responses), over all processes.

    KL (if the batch has `ref_logprobs`): the mean sampled log-ratio in nats per response. Entropy: the mean of
    -logprobs in nats per token. Repetition: see `repeated_tokens`.

    Raises:
        ValueError: the batch has no rewards or logprobs.
    """
    if batch.rewards is None or batch.logprobs is None:
        raise ValueError("rollout figures need rewards and logprobs: score the batch and add its logprobs first")
    reference = batch.logprobs if batch.ref_logprobs is None else batch.ref_logprobs
    sums = torch.stack(
        [(batch.logprobs - reference).sum(), batch.logprobs.sum(), batch.finished.to(batch.logprobs.dtype).sum()]
    )
    counts = batch.logprobs.new_tensor([batch.num_tokens, batch.num_responses, *repeated_tokens(batch)])
    shared = sum_over_processes(torch.cat([sums, counts])).tolist()
    kl, logprobs, finished, tokens, responses, repeated, places = shared
    mean, variance, _ = moments(batch.rewards.float())
    figures = {
        "reward": float(mean),
        "reward_std": float(variance.sqrt()),
        "entropy": -logprobs / tokens,
        "response_length": tokens / responses,
        "finished": finished / responses,
        "repetition": repeated / max(places, 1),
    }
    return figures | ({} if batch.ref_logprobs is None else {"kl": kl / responses}), responses
