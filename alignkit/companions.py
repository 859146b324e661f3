"""Companions of a training loop, and the metrics of a step. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from alignkit.batch import GroupBatch

Metrics = dict[str, "Tensor | float"]
"""Figures of one micro-batch. The engine sums them over the micro-batches and processes of a step, so compute them with
the batch's `token_mean`, `response_mean` and `group_mean`."""


class Alarm(str):
    """A sentence on a figure that is beyond its threshold: what it means and what to do.

    Attributes:
        record: the same for machines: `step`, the next one, `alarm`, the option that sets the threshold, `value` and
            `threshold`.
        stops: whether the run must stop as failed.
    """

    record: Mapping[str, Any]
    stops: bool

    def __new__(cls, text: str, record: Mapping[str, Any], *, stops: bool) -> Self:
        alarm = super().__new__(cls, text)
        alarm.record, alarm.stops = record, stops
        return alarm


class Companion:
    """Runs beside an algorithm in the training loop: a loss on texts, a moving reference, early stopping.

    `Optimizer.companions` returns them; the engine calls them in order. Each method does nothing by default.

    Attributes:
        name: key of its state in checkpoints.
        loss_figures: names of the figures that its losses report.
        reason: why the run should end early, as a success, for people; empty to continue.
        ends_at_best: whether a run that ends for `reason` saves the weights from the last time `is_best` was true.
    """

    name: ClassVar[str]
    loss_figures: ClassVar[tuple[str, ...]] = ()
    reason: str = ""
    ends_at_best: bool = False

    def observe(self, batch: GroupBatch, step: int) -> Mapping[str, float]:
        """Sees each batch of scored rollouts, sampled after `step` optimisation steps. Returns figures to log."""
        return {}

    def is_best(self, step: int) -> bool:
        """Whether the weights after `step` steps are the best so far, as of the last `observe`."""
        return False

    def check(self, figures: Mapping[str, float]) -> Sequence[Alarm]:
        """Called before the steps of a batch, with its figures; again if the run is resumed between these steps."""
        return ()

    def begin_step(self, step: int) -> None:
        """Called before each optimisation step; `step` counts from 0."""

    def losses(self, max_tokens: int) -> Sequence[Callable[[], tuple[Tensor, Metrics]]]:
        """Extra losses of the step, one per micro-batch of at most `max_tokens` tokens; their gradients add up."""
        return ()

    def after_step(self, step: int) -> Mapping[str, float]:
        """Called after each optimisation step; `step` counts from 1. Returns figures to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs, as JSON types."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    def tensors(self) -> dict[str, Any]:
        """State that a resumed run needs, as tensors; may be empty."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Restores what `tensors` returned."""
