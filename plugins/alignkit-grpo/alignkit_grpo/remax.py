"""ReMax, Li et al., arXiv:2310.10505: the reward of the greedy response to a prompt is the baseline of the sampled one.

The greedy response is sampled and scored once a batch, in `prepare`. It has the same length limit and the same
penalties; the KL of the sampled response is not held against it, as in the authors' code.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import ReMaxOptions


class ReMax(CriticFree[ReMaxOptions]):
    """Policy gradient against the greedy response."""
