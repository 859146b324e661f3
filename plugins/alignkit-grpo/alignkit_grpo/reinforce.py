"""REINFORCE, Williams 1992 (Machine Learning 8, 229-256), with the moving-average baseline of Ahmadian et al.,
arXiv:2402.14740, equation 5.

The average is over the rewards of earlier batches, so that the baseline doesn't depend on the response that it is held
against. The first batch, which has none before it, takes its own mean.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import REINFORCEOptions


class REINFORCE(CriticFree[REINFORCEOptions]):
    """Policy gradient of whole responses against the average reward so far."""
