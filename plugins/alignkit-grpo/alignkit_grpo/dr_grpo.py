"""GRPO done right, Liu et al., arXiv:2503.20783, section 3.2.

The divisor of each response's sum is a constant, `loss_length`: by default the longest response that can be sampled, as
in TRL. So neither a response's length nor its group's spread of rewards changes its weight.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import DrGRPOOptions


class DrGRPO(CriticFree[DrGRPOOptions]):
    """Group-relative policy gradient without the divisions by length and by standard deviation."""
