"""What the exact KL to a reference needs from the reference's pass over the same batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from alignkit_hf.kernels.exact_kl import Head, linear_kl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ReferenceStates:
    """The reference at the R positions that predict response tokens.

    Attributes:
        hidden: [R, H], if the vocabulary head can be applied to these positions alone.
        head: the reference's head; None if it is the policy's own, as with the adapter off.
        distribution: [R, V] log-probabilities, for any other head.
    """

    hidden: Tensor | None = None
    head: Head | None = None
    distribution: Tensor | None = None

    def kl_of_states(self, hidden: Tensor, head: Head, temperature: float) -> Tensor:
        """KL [R] of the policy with these hidden states [R, H]."""
        if self.hidden is None:
            raise ValueError("the reference's vocabulary head is run in another way than the policy's")
        own = replace(head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
        return linear_kl(hidden, head, self.hidden, self.head or own, temperature=temperature)

    def kl_of_distribution(self, distribution: Tensor) -> Tensor:
        """KL [R] of the policy with these log-probabilities [R, V]."""
        if self.distribution is None:
            raise ValueError("the reference's vocabulary head is run in another way than the policy's")
        return (distribution.exp() * (distribution - self.distribution)).sum(-1)
