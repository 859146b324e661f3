"""Greedy rollouts as a baseline: arXiv:2310.10505."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit import Sampling
from alignkit.algorithms import checked_scores, known

if TYPE_CHECKING:
    from alignkit import GroupBatch, Policy, RewardSource


def greedy_rollouts(policy: Policy[Any], reward: RewardSource[Any] | None, batch: GroupBatch) -> GroupBatch:
    """The policy's likeliest response to each prompt of a batch with `response_limit`, with `rewards` [G].

    If the reward source abstains, the mean reward of the prompt's sampled responses stands in.

    Raises:
        ValueError: there is no reward source.
    """
    if reward is None:
        raise ValueError("the greedy baseline needs a reward source to score its responses")
    prompts = [group.prompt for group in batch.groups]
    sampling = Sampling(max_tokens=batch.response_limit, temperature=0)
    greedy = policy.generate(prompts, n=1, sampling=sampling, seed=0)
    means = batch.sum_by_group(known(batch, "rewards").float()) / batch.group_sizes
    scores = checked_scores(reward, greedy.groups)
    rewards = [mean if score is None else score for (score,), mean in zip(scores, means.tolist(), strict=True)]
    return greedy.replace(rewards=torch.tensor(rewards, device=batch.device), response_limit=batch.response_limit)
