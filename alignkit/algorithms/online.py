"""Bases of algorithms on rollouts: early stopping, alarms, texts in the loss, a moving reference, and the weight of
the KL, which may follow the measured KL.

A batch never changes its own weight: the controller sees a batch's KL when the next batch is prepared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from alignkit.algorithms.options import HeldOptions, OnlineOptions
from alignkit.algorithms.passes import policy_logprobs
from alignkit.interfaces import Feed, Optimizer
from alignkit.ops.kl import kl_controller
from alignkit.ops.rollouts import rollout_figures
from alignkit.options import Config, PtxOptions
from alignkit.training.alarms import Alarms
from alignkit.training.ptx import PtxText
from alignkit.training.reference import MovingReference
from alignkit.training.stopping import RolloutWatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.companions import Companion
    from alignkit.records import Group

OnlineT = TypeVar("OnlineT", bound=OnlineOptions)
HeldT = TypeVar("HeldT", bound=HeldOptions)


class OnlineAlgorithm(Optimizer[OnlineT]):
    """Base of algorithms that learn from scored rollouts of the policy itself."""

    Config: ClassVar[type[Config]] = OnlineOptions
    consumes = Feed.ROLLOUTS
    reports = frozenset({"kl", "gold_drop"})

    def companions(self, texts: Sequence[Group], seed: int) -> Sequence[Companion]:
        """The companions that the options ask for."""
        options = self.config
        found: list[Companion] = [RolloutWatch(options.stop, self.context), Alarms(options, self.raise_kl)]
        if isinstance(options, PtxOptions) and options.ptx_coef:
            coef, size = options.ptx_coef, options.ptx_batch_size
            found.append(PtxText(texts, self.policy, coef=coef, size=size, seed=seed))
        if options.reference_refresh_every and self.reference is not None:
            found.append(MovingReference(options, self))
        return found

    def raise_kl(self, factor: float) -> None:
        """Multiplies the weight of the KL, if there is one."""


class HeldAlgorithm(OnlineAlgorithm[HeldT]):
    """Base of algorithms that a weighted KL holds to a reference.

    Attributes:
        kl_controller: its `coef` is the weight.
        kl_weight_name: name of the weight in the metrics.
    """

    Config: ClassVar[type[Config]] = HeldOptions
    reports = OnlineAlgorithm.reports | {"entropy", "response_length", "repetition", "finished"}
    kl_weight_name: ClassVar[str] = "kl_coef"

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        options = self.config
        more = {"target": options.kl_target, "horizon": options.kl_horizon, "end": options.kl_coef_end}
        self.kl_controller = kl_controller(options.kl_controller, options.kl_weight, **more)
        self._last_kl: list[float] = []

    def raise_kl(self, factor: float) -> None:
        self.kl_controller.coef *= factor

    @torch.no_grad()
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Adds logprobs and, if there is a reference, ref_logprobs, all [R].

        Raises:
            ValueError: the batch has no rewards.
        """
        if self._last_kl:
            self.kl_controller.update(*self._last_kl)
        return self.with_reference(self.with_logprobs(batch))

    def with_reference(self, batch: GroupBatch) -> GroupBatch:
        """The batch with `ref_logprobs` if there is a reference."""
        if self.reference is None:
            return batch
        return batch.replace(ref_logprobs=policy_logprobs(self.reference, batch, self.max_tokens))

    def with_logprobs(self, batch: GroupBatch) -> GroupBatch:
        """The batch with `logprobs`: the sampler's, or else the current policy's."""
        if batch.logprobs is not None:
            return batch
        return batch.replace(logprobs=policy_logprobs(self.policy, batch, self.max_tokens))

    def observe(self, batch: GroupBatch, **more: float) -> None:
        """Sets the batch's figures and keeps its KL for the controller."""
        figures, responses = rollout_figures(batch)
        self.batch_metrics = {**figures, **more}
        if "kl" in figures:
            self._last_kl = [figures["kl"], responses]
            self.batch_metrics[self.kl_weight_name] = self.kl_controller.coef

    def state_dict(self) -> dict[str, Any]:
        return {"kl_controller": self.kl_controller.state_dict(), "last_kl": self._last_kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kl_controller.load_state_dict(state["kl_controller"])
        self._last_kl = list(state["last_kl"])
