"""Options that all policy gradients share; an algorithm is a choice of defaults among them, and what it adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from alignkit.errors import InputError
from alignkit.ops.choices import Aggregation, KLControl, KLEstimator, KLPlace, RatioLevel, Surrogate
from alignkit.options import (
    Config,
    EarlyStopOptions,
    KLLimitOptions,
    MovingReferenceOptions,
    NonNegative,
    Positive,
    PtxOptions,
    RolloutOptions,
    TrainingOptions,
)


@dataclass(frozen=True, kw_only=True)
class KLControlOptions(Config):
    """Course of the KL's weight."""

    kl_controller: KLControl = "fixed"
    """Of the weight of the KL (kl_coef; beta where the algorithm has one). `adaptive` moves it by up to a fifth each
    kl_horizon so that the KL goes to kl_target, `target` doubles or halves it after each batch whose KL is far from
    kl_target, `linear` takes it to kl_coef_end over kl_horizon."""
    kl_target: Positive = 6.0
    """KL to the reference that `adaptive` and `target` hold, in nats a response."""
    kl_horizon: Positive = 10000.0
    """Responses over which `adaptive` may change the weight by a fifth, and `linear` reaches kl_coef_end."""
    kl_coef_end: NonNegative = 0.0
    """Where `linear` takes the weight."""


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(RolloutOptions, EarlyStopOptions, KLLimitOptions, PtxOptions, MovingReferenceOptions):
    """Options of every algorithm on rollouts."""


@dataclass(frozen=True, kw_only=True)
class PolicyGradientOptions(OnlineOptions, KLControlOptions):
    """Rewards, KL to the reference, and the surrogate loss.

    Attributes:
        imitates: whether the loss is a likelihood of what is trained on, which no step already taken makes wrong.
    """

    imitates: ClassVar[bool] = False

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""

    surrogate: Surrogate = "clip"
    """How rollouts of an older policy are corrected for: `clip` cuts the gradient where the probability ratio leaves
    the clip range, `ratio` never cuts it, `truncated` weighs log-probabilities by the ratio up to 1 + clip_range_high,
    and `logprob` doesn't correct: for one step a batch."""
    ratio_level: RatioLevel = "token"
    """What the ratio is of: each token, the whole response, or the geometric mean over a response's tokens."""
    clip_range: Positive = 0.2
    """The probability ratio to the policy that sampled counts down to 1 minus this, and up to 1 plus this."""
    clip_range_high: NonNegative = 0.0
    """The ratio counts up to 1 plus this, where it differs from clip_range; 0 takes clip_range."""
    dual_clip: NonNegative = 0.0
    """Where the advantage is negative, the ratio counts up to this, above 1; 0 has no such bound."""
    off_policy_kl: NonNegative = 0.0
    """Bad responses that the policy has moved away from by more than this, in nats a token, are left out; 0 keeps
    them."""
    stop_kl: NonNegative = 0.0
    """The rest of an iteration's updates is left out once a step's KL from the policy that sampled, in nats a token, is
    above this; 0 never stops."""
    aggregation: Aggregation = "token"
    """The loss is the mean over tokens, the mean over responses of the mean over their tokens, or the mean over
    responses of the sum over their tokens divided by loss_length."""
    loss_length: NonNegative = 1.0
    """Divisor of `sum`, in tokens; 0 takes the longest response that can be sampled."""
    ent_coef: NonNegative = 0.0
    """Weight of the entropy bonus, a nat of entropy a token."""

    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference, in units of reward a nat."""
    kl_place: KLPlace = "reward"
    """Whether the KL is taken from each token's reward or added to the loss."""
    kl_estimator: KLEstimator = "k1"
    """Estimate of the KL. In the reward only k1 has its exact optimum, in the loss only k2, or k3 with kl_importance,
    or `full`, which sums over the whole vocabulary at each sampled token instead of estimating (arXiv:2504.10637): no
    noise from the token, for one more pass of the reference each time. The others change what is optimised."""
    kl_importance: bool = False
    """In the loss, weigh the KL by the probability ratio, whose gradient makes k1 and k3 exact."""
    track_kl: bool = False
    """Measure the KL to the reference also where it isn't penalised (kl_coef 0) or limited (max_kl 0). It costs a
    frozen copy of the policy and a pass of it."""

    normalize_rewards: bool = False
    """Scale scores by the mean and standard deviation of all scores seen so far. A trained reward model is normalised
    already."""
    reward_clip: NonNegative = 0.0
    """Scores are held within plus and minus this, after normalisation; 0 does not clip."""
    missing_eos_penalty: NonNegative = 0.0
    """Reward taken from the last token of a response that was cut off at the length limit."""

    @property
    def needs_reference(self) -> bool:
        """Whether anything asks for the KL to the reference."""
        return self.track_kl or max(self.kl_coef, self.kl_coef_end, self.max_kl) > 0

    def check(self) -> None:
        super().check()
        if self.kl_controller in ("adaptive", "target") and self.kl_coef == 0:
            raise InputError(
                f"the {self.kl_controller} controller multiplies kl_coef, so it can't start from 0",
                where="kl_coef",
                fix="set kl_coef above 0, or kl_controller to 'fixed'",
            )
        if self.reference_refresh_every and not self.needs_reference:
            raise InputError(
                "there is no reference to refresh: nothing asks for the KL to it",
                where="reference_refresh_every",
                fix="set kl_coef above 0, or track_kl, or leave this out",
            )
        if 0 < self.dual_clip <= 1:
            raise InputError(
                f"{self.dual_clip} would cut off the ratio 1 of unchanged weights", where="dual_clip", fix="above 1"
            )
        if self.surrogate == "logprob" and self.n_epochs > 1 and not self.imitates:
            raise InputError(
                "`logprob` doesn't correct for the steps already taken, so it is for one pass over the rollouts",
                where="surrogate",
                fix="choose clip, ratio or truncated, or n_epochs = 1",
            )
        if self.kl_estimator == "full" and (self.kl_place == "reward" or self.kl_importance):
            raise InputError(
                "the exact KL is a term of the loss, and exact without a weight",
                where="kl_estimator",
                fix="set kl_place = 'loss' and kl_importance = false, or choose another estimator",
            )
        if self.kl_importance and self.kl_place == "reward":
            raise InputError(
                "in the reward the KL is a constant and needs no weight", where="kl_importance", fix="leave it out"
            )


FDivergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class OfflineOptions(TrainingOptions):
    """Options of every algorithm that learns from recorded feedback under the policy itself."""

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    beta: Positive = 0.1
    """Strength of the pull to the reference: the policy's optimum is the reference times exp(reward / beta)."""

    @property
    def divergence(self) -> tuple[FDivergence, float]:
        """The divergence from the reference that beta weighs, and its alpha."""
        return "reverse-kl", 0.0


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(OfflineOptions):
    """Options of every algorithm that compares the responses of a ranking."""

    sft_weight: NonNegative = 0.0
    """Weight of the negative log-likelihood of the best response, in nats a token, that is added to the loss
    (arXiv:2404.19733). It keeps the best response from losing probability together with the others."""
