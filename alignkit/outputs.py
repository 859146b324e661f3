"""What a forward pass of a policy or of a scorer gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class PolicyOutput:
    """What one forward pass gives.

    Attributes:
        logprobs: [R] log-probability of each response token, of the distribution at the batch's temperature.
        entropy: [R] entropy of that distribution, when asked for.
        hidden: [R, H] last hidden state at the position that predicts each response token, when asked for.
        values: [R] value head at the same positions, when asked for.
        kl: [R] KL(this policy || the one asked about) in nats over the whole vocabulary, at the same positions and the
            batch's temperature. Its gradient reaches this policy alone.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    hidden: Tensor | None = None
    values: Tensor | None = None
    kl: Tensor | None = None


@dataclass(frozen=True)
class ScorerOutput:
    """A scalar for every token: `values` [R] at the position that predicts each response token, `scores` [S] at the
    last token of each response."""

    values: Tensor
    scores: Tensor


@dataclass(frozen=True)
class TrainResult:
    """Steps done in all, seconds and response tokens of this process's run, the last step's metrics, and why the run
    ended before its last iteration, where it did."""

    steps: int
    seconds: float
    tokens: int
    metrics: Mapping[str, float]
    stopped: str = ""
