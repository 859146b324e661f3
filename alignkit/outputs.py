"""Results of forward passes and of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class PolicyOutput:
    """The result of one forward pass of a policy.

    Attributes:
        logprobs: [R] log-probability of each response token at the batch's temperature.
        entropy: [R] entropy of that distribution, if requested.
        hidden: [R, H] last hidden state at the position that predicts each response token, if requested.
        values: [R] value head at the same positions, if requested.
        kl: [R] KL(this policy || `kl_to`) in nats over the whole vocabulary, at the same positions and temperature.
            Only this policy gets a gradient.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    hidden: Tensor | None = None
    values: Tensor | None = None
    kl: Tensor | None = None


@dataclass(frozen=True)
class ScorerOutput:
    """A scorer's `values` [R] at the position that predicts each response token, and `scores` [S] at the last token of
    each response."""

    values: Tensor
    scores: Tensor


@dataclass(frozen=True)
class TrainResult:
    """The result of a training.

    Attributes:
        steps: done in all, earlier runs included.
        seconds: of this process.
        tokens: response tokens of this process.
        metrics: of the last step.
        stopped: why the run ended before its last iteration; empty if it did not.
        spent: prompts, response_tokens, seconds and flops of all processes, earlier runs included; empty: not known.
    """

    steps: int
    seconds: float
    tokens: int
    metrics: Mapping[str, float]
    stopped: str = ""
    spent: Mapping[str, float] = field(default_factory=dict)
