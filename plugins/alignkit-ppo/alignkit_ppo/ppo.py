"""Proximal policy optimisation, Schulman et al., arXiv:1707.06347, for language models as in Ouyang et al.,
arXiv:2203.02155: the score is paid at the last token, the KL to the reference at every token.

What is deliberately different of cut-off responses stands in `actor_critic`.
"""

from __future__ import annotations

from alignkit_ppo.actor_critic import ActorCritic
from alignkit_ppo.options import PPOOptions


class PPO(ActorCritic[PPOOptions]):
    """Clipped policy gradient with a critic."""
