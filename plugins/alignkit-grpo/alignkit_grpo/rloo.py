"""REINFORCE leave-one-out, Ahmadian et al., arXiv:2402.14740, section 3.2; the estimator is that of Kool et al. 2019.

A response is one action: its ratio is that of the whole response, and its KL, summed over the tokens, is taken from its
reward. Different from the paper: the ratio is clipped, as in TRL, so that rollouts can be used for more than one step.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import RLOOOptions


class RLOO(CriticFree[RLOOOptions]):
    """Policy gradient of whole responses against the mean of the others of their group."""
