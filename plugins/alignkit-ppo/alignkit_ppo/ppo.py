"""Proximal policy optimisation and advantage actor-critic: `actor_critic` with and without a ratio.

How cut-off responses deliberately differ is explained there.
"""

from __future__ import annotations

from alignkit.algorithms import ClippedPolicyGradient
from alignkit_ppo.actor_critic import ActorCritic
from alignkit_ppo.options import A2COptions, PPOOptions


class PPO(ActorCritic[PPOOptions], ClippedPolicyGradient[PPOOptions]):
    """Clipped policy gradient with a critic, Schulman et al., arXiv:1707.06347; for language models Ouyang et al.,
    arXiv:2203.02155: the score at the last token, the KL to the reference at every token."""


class A2C(ActorCritic[A2COptions]):
    """Advantage actor-critic, Mnih et al., arXiv:1602.01783, synchronous: policy gradient of the log-probability.

    Different from the paper: returns reach to the end of a response instead of five steps, and AdamW takes the steps.
    """
