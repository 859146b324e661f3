"""What every algorithm on rollouts has: an early end, a limit of the KL, texts in the loss, a moving reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

from alignkit.algorithms.options import OnlineOptions
from alignkit.interfaces import Feed, Optimizer
from alignkit.training.ptx import PtxText
from alignkit.training.reference import MovingReference
from alignkit.training.stopping import KLLimit, RolloutWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.companions import Companion
    from alignkit.options import Config
    from alignkit.records import Group

OnlineT = TypeVar("OnlineT", bound=OnlineOptions)


class OnlineAlgorithm(Optimizer[OnlineT]):
    """Base of algorithms that learn from scored rollouts of the policy itself."""

    Config: ClassVar[type[Config]] = OnlineOptions
    consumes = Feed.ROLLOUTS
    reports = frozenset({"kl"})

    def companions(self, texts: Sequence[Group], seed: int) -> Sequence[Companion]:
        """Those that the options ask for."""
        options = self.config
        found: list[Companion] = [RolloutWatch(options.stop, self.context)]
        if options.max_kl:
            found.append(KLLimit(options.max_kl))
        if options.ptx_coef:
            coef, size = options.ptx_coef, options.ptx_batch_size
            found.append(PtxText(texts, self.policy, coef=coef, size=size, seed=seed))
        if options.reference_refresh_every and self.reference is not None:
            found.append(MovingReference(options, self))
        return found
