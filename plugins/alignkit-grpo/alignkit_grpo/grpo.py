"""Group relative policy optimisation, Shao et al. (DeepSeekMath), arXiv:2402.03300, equations 3 and 4.

Different from the paper: the standard deviation of a group has the divisor n - 1, as in TRL, and the KL is weighed by
the probability ratio, without which its gradient is that of another divergence (DeepSeek-AI, arXiv:2512.02556, section
3.1); `kl_importance = false` is the paper's.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import GRPOOptions


class GRPO(CriticFree[GRPOOptions]):
    """Clipped policy gradient on rewards that are normalised within each group."""
