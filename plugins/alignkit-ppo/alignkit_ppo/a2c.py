"""Advantage actor-critic, Mnih et al., arXiv:1602.01783, run in step (A2C): one gradient step on each batch.

Different from the paper: returns reach to the end of a response instead of five steps, and AdamW takes the steps.
"""

from __future__ import annotations

from alignkit_ppo.actor_critic import ActorCritic
from alignkit_ppo.options import A2COptions


class A2C(ActorCritic[A2COptions]):
    """Policy gradient of the log-probability, with a critic and an entropy bonus."""
