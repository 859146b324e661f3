"""What may accompany the training of an algorithm, and the figures that a training step reports. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from alignkit.batch import GroupBatch

Metrics = dict[str, "Tensor | float"]
"""Figures of one micro-batch. The engine adds them up over the micro-batches and processes of a step, so write them
with the batch's `token_mean`, `response_mean` and `group_mean`."""


class Companion:
    """What accompanies the training of an algorithm: texts in the loss, a moving reference, a reason to end early.

    `Optimizer.companions` hands them to the engine, which calls them in order. Each method does nothing by default.

    Attributes:
        name: under which its state is kept in checkpoints.
        loss_figures: the figures that its losses report.
        reason: why the run is to end, well, for people; empty while it goes on.
        ends_at_best: whether a run that ends for `reason` saves the weights of the last time that `is_best` held.
    """

    name: ClassVar[str]
    loss_figures: ClassVar[tuple[str, ...]] = ()
    reason: str = ""
    ends_at_best: bool = False

    def observe(self, batch: GroupBatch, step: int) -> Mapping[str, float]:
        """Takes note of a batch of scored rollouts, as sampled after `step` optimisation steps; figures to log."""
        return {}

    def is_best(self, step: int) -> bool:
        """Whether the weights after `step` steps are worth keeping, as far as the last `observe` could tell."""
        return False

    def check(self, figures: Mapping[str, float]) -> str:
        """Before the steps of a batch, by its figures: why the run must stop as failed, or nothing."""
        return ""

    def begin_step(self, step: int) -> None:
        """Before each optimisation step, counted from 0."""

    def losses(self, max_tokens: int) -> Sequence[Callable[[], tuple[Tensor, Metrics]]]:
        """Losses of the step beside the algorithm's, as micro-batches of at most so many tokens; gradients add up."""
        return ()

    def after_step(self, step: int) -> Mapping[str, float]:
        """After each optimisation step, counted from 1; figures to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON types."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def tensors(self) -> dict[str, Any]:
        """What a resumed run needs beside that, as tensors; empty for none."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Takes back what `tensors` gave."""
