"""REINFORCE++, Hu et al., arXiv:2501.03262: the clip of PPO, a KL penalty in each token's reward, and advantages that
are normalised over the whole batch instead of a critic or a group.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import REINFORCEPlusPlusOptions


class REINFORCEPlusPlus(CriticFree[REINFORCEPlusPlusOptions]):
    """Clipped policy gradient with advantages normalised over the batch."""
