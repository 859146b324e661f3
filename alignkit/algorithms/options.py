"""Option groups that algorithms share, and the families made of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from alignkit.errors import InputError
from alignkit.ops.choices import Aggregation, KLControl, KLEstimator, KLPlace, RatioLevel, Surrogate
from alignkit.options import (
    AlarmOptions,
    Config,
    EarlyStopOptions,
    MovingReferenceOptions,
    NonNegative,
    Positive,
    RolloutOptions,
    TrainingOptions,
)


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(AlarmOptions, MovingReferenceOptions, EarlyStopOptions, RolloutOptions):
    """Options of every algorithm on rollouts."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("stop.gold", self.stop.gold is not None, "alarm_gold")


@dataclass(frozen=True, kw_only=True)
class KLControlOptions(Config):
    """Schedule of the KL weight."""

    kl_controller: KLControl = "fixed"
    """How the KL weight (kl_coef, or beta) changes: `adaptive` moves it by up to a fifth per kl_horizon to bring the KL
    to kl_target, `target` doubles or halves it after each batch whose KL is far from kl_target, `linear` takes it to
    kl_coef_end over kl_horizon."""
    kl_target: Positive = 6.0
    """KL to the reference that `adaptive` and `target` aim for, in nats per response."""
    kl_horizon: Positive = 10000.0
    """Responses over which `adaptive` may change the weight by a fifth, and `linear` reaches kl_coef_end."""
    kl_coef_end: NonNegative = 0.0
    """KL weight at the end of `linear`."""

    @property
    def kl_weight(self) -> float:
        """The KL weight at the start."""
        raise NotImplementedError(f"{type(self).__name__} must define the property kl_weight")

    def check(self) -> None:
        super().check()
        for name, kinds in (
            ("kl_target", ("adaptive", "target")),
            ("kl_horizon", ("adaptive", "linear")),
            ("kl_coef_end", ("linear",)),
        ):
            setting = " or ".join(f"kl_controller = '{kind}'" for kind in kinds)
            self.counts_only_with(setting, self.kl_controller in kinds, name)
        if self.kl_controller == "linear" and self.kl_weight == self.kl_coef_end:
            raise InputError(
                f"`linear` would start and end at {self.kl_coef_end:g}", where="kl_coef_end", fix="set another value"
            )


@dataclass(frozen=True, kw_only=True)
class HeldOptions(OnlineOptions, KLControlOptions):
    """Options of every algorithm on rollouts that weighs the KL to a reference."""

    @property
    def can_raise_kl(self) -> bool:
        return self.kl_weight > 0 and self.kl_controller != "linear"


@dataclass(frozen=True, kw_only=True)
class KLOptions(Config):
    """KL to the reference."""

    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference, in reward per nat."""
    kl_place: KLPlace = "reward"
    """Subtract the KL from each token's reward, or add it to the loss."""
    kl_estimator: KLEstimator = "k1"
    """Estimate of the KL. Only these have the exact optimum: k1 in the reward; k2, k3 with kl_importance, or `full` in
    the loss. `full` sums over the vocabulary at each sampled token (arXiv:2504.10637): no noise from the token, one
    more reference pass each time. The others change what is optimised."""
    kl_importance: bool = False
    """Weight the KL in the loss by the probability ratio, whose gradient makes k1 and k3 exact."""
    track_kl: bool = False
    """Measure the KL to the reference even if kl_coef and max_kl are 0. Costs a frozen copy of the policy and a pass
    of it."""

    def check(self) -> None:
        super().check()
        if self.kl_estimator == "full" and (self.kl_place == "reward" or self.kl_importance):
            raise InputError(
                "'full' works only in the loss, without kl_importance",
                where="kl_estimator",
                fix="set kl_place = 'loss' and kl_importance = false, or choose another estimator",
            )
        if self.kl_importance and self.kl_place == "reward":
            raise InputError("has no effect with kl_place = 'reward'", where="kl_importance", fix="leave it out")


@dataclass(frozen=True, kw_only=True)
class RewardOptions(Config):
    """Rewards."""

    normalize_rewards: bool = False
    """Normalise scores by the mean and standard deviation of all scores so far. A trained reward model is normalised
    already."""
    reward_clip: NonNegative = 0.0
    """Clip scores to plus and minus this, after normalisation; 0: no clipping."""
    missing_eos_penalty: NonNegative = 0.0
    """Reward subtracted at the last token of a response that was cut off at the length limit."""


@dataclass(frozen=True, kw_only=True)
class PolicyLossOptions(Config):
    """Loss of the policy."""

    aggregation: Aggregation = "token"
    """How the loss is averaged: `token` over all tokens; `response` over the tokens of each response, then over
    responses; `sum` over responses of the sum over their tokens, divided by loss_length."""
    loss_length: NonNegative = 1.0
    """Divisor of `sum`, in tokens; 0: the longest response that can be sampled."""
    ent_coef: NonNegative = 0.0
    """Weight of the entropy bonus, which is in nats per token."""
    stop_kl: NonNegative = 0.0
    """Skip the rest of an iteration's updates once a step's KL from the sampling policy, in nats per token, is above
    this; 0 never stops."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("aggregation = 'sum'", self.aggregation == "sum", "loss_length")


@dataclass(frozen=True, kw_only=True)
class PolicyGradientOptions(PolicyLossOptions, RewardOptions, KLOptions, HeldOptions):
    """Options of every policy gradient."""

    matters: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "kl_coef",
        "iterations",
        "batch_size",
        "group_size",
        "minibatch_size",
    )

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""

    @property
    def kl_weight(self) -> float:
        return self.kl_coef

    @property
    def penalizes_kl(self) -> bool:
        """Whether the KL weight is ever above 0."""
        return max(self.kl_coef, self.kl_coef_end) > 0

    @property
    def needs_reference(self) -> bool:
        """Whether any option needs the KL to the reference."""
        return self.track_kl or self.penalizes_kl or self.max_kl > 0

    def check(self) -> None:
        super().check()
        if self.kl_controller in ("adaptive", "target") and self.kl_coef == 0:
            raise InputError(
                f"the {self.kl_controller} controller multiplies kl_coef, so it can't start from 0",
                where="kl_coef",
                fix="set kl_coef above 0, or kl_controller to 'fixed'",
            )
        self.counts_only_with("kl_coef above 0 or track_kl = true", self.needs_reference, "alarm_kl")
        self.counts_only_with("kl_coef above 0", self.penalizes_kl, "kl_place", "kl_estimator", "kl_importance")
        if self.reference_refresh_every and not self.needs_reference:
            raise InputError(
                "there is no reference to refresh, because no option uses the KL to it",
                where="reference_refresh_every",
                fix="set kl_coef above 0 or track_kl = true, or leave this out",
            )


@dataclass(frozen=True, kw_only=True)
class RatioOptions(Config):
    """Ratio to the sampling policy."""

    surrogate: Surrogate = "clip"
    """Correction for rollouts of an older policy: `clip` cuts the gradient where the probability ratio leaves the clip
    range, `truncated` weights log-probabilities by the ratio, up to 1 + clip_range_high (CISPO)."""
    ratio_level: RatioLevel = "token"
    """Ratio of each token, of the whole response, or the geometric mean over a response's tokens."""
    clip_range: Positive = 0.2
    """Range of the probability ratio to the sampling policy: from 1 minus this to 1 plus this."""
    clip_range_high: NonNegative = 0.0
    """Upper end of the range, 1 plus this, if it differs; 0: clip_range."""
    dual_clip: NonNegative = 0.0
    """Upper bound of the ratio where the advantage is negative, above 1; 0: none."""
    off_policy_kl: NonNegative = 0.0
    """Drop the bad tokens of responses that the policy moved away from by more than this, in nats per token; 0 keeps
    them."""

    @property
    def upper_clip_range(self) -> float:
        """The upper end of the ratio's range, less 1."""
        return self.clip_range_high or self.clip_range

    def check(self) -> None:
        super().check()
        self.counts_only_with("surrogate = 'clip'", self.surrogate == "clip", "dual_clip")
        if 0 < self.dual_clip <= 1:
            raise InputError(
                f"{self.dual_clip} would clip the ratio 1 of unchanged weights", where="dual_clip", fix="set it above 1"
            )


@dataclass(frozen=True, kw_only=True)
class ClippedOptions(RatioOptions, PolicyGradientOptions):
    """Options of every policy gradient that takes several steps on its rollouts."""

    matters: ClassVar[tuple[str, ...]] = (*PolicyGradientOptions.matters, "n_epochs", "clip_range")


@dataclass(frozen=True, kw_only=True)
class OnePassOptions(Config):
    """For losses that don't correct for the steps already taken: always one pass over the rollouts."""

    n_epochs: ClassVar[int] = 1


FDivergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class OfflineOptions(TrainingOptions):
    """Pull to the reference.

    Options of every algorithm that learns from recorded feedback under the policy itself.
    """

    matters: ClassVar[tuple[str, ...]] = ("beta", *TrainingOptions.matters)

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    beta: Positive = 0.1
    """Strength of the pull to the reference: the policy's optimum is the reference times exp(reward / beta)."""

    @property
    def divergence(self) -> tuple[FDivergence, float]:
        """The divergence from the reference that beta weights, and its alpha."""
        return "reverse-kl", 0.0


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(OfflineOptions):
    """Likelihood of the best response.

    Options of every algorithm that compares the responses of a ranking.
    """

    matters: ClassVar[tuple[str, ...]] = (*OfflineOptions.matters, "sft_weight")

    sft_weight: NonNegative = 0.0
    """Weight of the best response's negative log-likelihood, in nats per token, in the loss (arXiv:2404.19733). It
    keeps the best response from losing probability along with the others."""
