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
    """Direct preference optimisation (arXiv:2305.18290).

    Formula: -log sigmoid(beta * (r_w - r_l)), with r = log pi(y|x) - log pi_ref(y|x)
    Paper: Rafailov et al., arXiv:2305.18290, eq. 7.
    Use it when: there are pairs or rankings, and a stable loss without sampling is wanted. The first one to try.
    """

    label_smoothing: FlipProbability = 0.0
    """Probability that a preference is recorded the wrong way round (conservative DPO)."""


@dataclass(frozen=True, kw_only=True)
class IPOOptions(PreferenceOptions):
    """Identity preference optimisation (arXiv:2310.12036).

    Formula: (d_w - d_l - 1 / (2 * beta))^2, with d = (log pi(y|x) - log pi_ref(y|x)) / |y|
    Paper: Azar et al., arXiv:2310.12036, eq. 17; the mean over tokens as in the authors' experiments.
    Use it when: preferences are nearly certain or few, where DPO drives the gap to infinity and overfits.
    """

    beta: Positive = 0.1
    """Strength of the pull to the reference: chosen leads rejected by 1 / (2 beta) nats a token at the optimum."""
