"""Supervised fine-tuning: maximum likelihood of demonstrations given their prompts.

As in arXiv:2203.02155, section 3.5. Only response tokens, including each response's end token, carry loss. The mean is
over all of them in the optimisation step, whatever the micro-batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from alignkit import Feed, Optimizer
from alignkit_hf.options import SFTOptions

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import GroupBatch, Metrics


class SFT(Optimizer[SFTOptions]):
    """Minimises the negative log-probability of the response tokens."""

    consumes: ClassVar[Feed] = Feed.DEMONSTRATIONS
    couples_responses: ClassVar[bool] = False

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The mean over response tokens, in nats."""
        loss = -batch.token_mean(self.policy.forward(batch).logprobs)
        return loss, {"loss": loss.detach()}
