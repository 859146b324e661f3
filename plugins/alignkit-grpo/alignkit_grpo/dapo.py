"""Decoupled clip and dynamic sampling policy optimisation, Yu et al., arXiv:2503.14476.

Different from the paper: groups of equal rewards are left out of a batch that is not filled up again, so
`optimizer.batch_size` says how many prompts are sampled and the number of steps of an iteration varies; the figure
`kept` is the share of responses that is left. The paper samples on until the batch is full. Responses near the length
limit are penalised over the last fifth of it, which is the paper's 4096 of 20480 tokens.
"""

from __future__ import annotations

from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import DAPOOptions


class DAPO(CriticFree[DAPOOptions]):
    """Token-mean policy gradient with a higher upper clip, on groups whose rewards differ."""
