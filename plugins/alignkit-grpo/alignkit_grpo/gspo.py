"""Group sequence policy optimisation, Zheng et al., arXiv:2507.18071: the clipped ratio is that of a response.

The ratio is the geometric mean over the tokens of a response, so its clip range is far narrower than that of a token.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import GSPOOptions


class GSPO(CriticFree[GSPOOptions]):
    """Group-relative policy gradient whose ratio is that of the response."""
