"""Options of the plugin's Optimizers. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from alignkit.options import NonNegative, Positive, TrainingOptions

FlipProbability = Annotated[float, Interval(ge=0, lt=0.5)]


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(TrainingOptions):
    """Options of every algorithm that compares the responses of a ranking under the policy itself."""

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    beta: Positive = 0.1
    """Strength of the pull to the reference: the policy's optimum is the reference times exp(reward / beta)."""


@dataclass(frozen=True, kw_only=True)
class DPOOptions(PreferenceOptions):
    """Options of `dpo`."""

    label_smoothing: FlipProbability = 0.0
    """Probability that a preference is recorded the wrong way round (conservative DPO)."""


@dataclass(frozen=True, kw_only=True)
class IPOOptions(PreferenceOptions):
    """Options of `ipo`."""

    beta: Positive = 0.1
    """Strength of the pull to the reference: chosen leads rejected by 1 / (2 beta) nats a token at the optimum."""
