"""Groups of options that algorithms share, and what their families are composed of. Free of torch."""

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
    RolloutOptions,
    TrainingOptions,
)


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(KLLimitOptions, MovingReferenceOptions, EarlyStopOptions, RolloutOptions):
    """What every algorithm on rollouts has."""


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

    @property
    def kl_weight(self) -> float:
        """The weight of the KL at the start."""
        raise NotImplementedError(f"{type(self).__name__} doesn't say what the weight of its KL is")

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
                f"`linear` would start at {self.kl_coef_end:g} too", where="kl_coef_end", fix="set another end"
            )


@dataclass(frozen=True, kw_only=True)
class HeldOptions(OnlineOptions, KLControlOptions):
    """What every algorithm on rollouts has that weighs the KL to a reference."""


@dataclass(frozen=True, kw_only=True)
class KLOptions(Config):
    """KL to the reference."""

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

    def check(self) -> None:
        super().check()
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


@dataclass(frozen=True, kw_only=True)
class RewardOptions(Config):
    """Rewards."""

    normalize_rewards: bool = False
    """Scale scores by the mean and standard deviation of all scores seen so far. A trained reward model is normalised
    already."""
    reward_clip: NonNegative = 0.0
    """Scores are held within plus and minus this, after normalisation; 0 does not clip."""
    missing_eos_penalty: NonNegative = 0.0
    """Reward taken from the last token of a response that was cut off at the length limit."""


@dataclass(frozen=True, kw_only=True)
class PolicyLossOptions(Config):
    """Loss of the policy."""

    aggregation: Aggregation = "token"
    """The loss is the mean over tokens, the mean over responses of the mean over their tokens, or the mean over
    responses of the sum over their tokens divided by loss_length."""
    loss_length: NonNegative = 1.0
    """Divisor of `sum`, in tokens; 0 takes the longest response that can be sampled."""
    ent_coef: NonNegative = 0.0
    """Weight of the entropy bonus, a nat of entropy a token."""
    stop_kl: NonNegative = 0.0
    """The rest of an iteration's updates is left out once a step's KL from the policy that sampled, in nats a token, is
    above this; 0 never stops."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("aggregation = 'sum'", self.aggregation == "sum", "loss_length")


@dataclass(frozen=True, kw_only=True)
class PolicyGradientOptions(PolicyLossOptions, RewardOptions, KLOptions, HeldOptions):
    """What every policy gradient has."""

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
        """Whether the KL ever has a weight."""
        return max(self.kl_coef, self.kl_coef_end) > 0

    @property
    def needs_reference(self) -> bool:
        """Whether anything asks for the KL to the reference."""
        return self.track_kl or self.penalizes_kl or self.max_kl > 0

    def check(self) -> None:
        super().check()
        if self.kl_controller in ("adaptive", "target") and self.kl_coef == 0:
            raise InputError(
                f"the {self.kl_controller} controller multiplies kl_coef, so it can't start from 0",
                where="kl_coef",
                fix="set kl_coef above 0, or kl_controller to 'fixed'",
            )
        self.counts_only_with("kl_coef above 0", self.penalizes_kl, "kl_place", "kl_estimator", "kl_importance")
        if self.reference_refresh_every and not self.needs_reference:
            raise InputError(
                "there is no reference to refresh: nothing asks for the KL to it",
                where="reference_refresh_every",
                fix="set kl_coef above 0, or track_kl, or leave this out",
            )


@dataclass(frozen=True, kw_only=True)
class RatioOptions(Config):
    """Ratio to the policy that sampled."""

    surrogate: Surrogate = "clip"
    """How rollouts of an older policy are corrected for: `clip` cuts the gradient where the probability ratio leaves
    the clip range, `truncated` weighs log-probabilities by the ratio up to 1 + clip_range_high (CISPO)."""
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

    @property
    def upper_clip_range(self) -> float:
        """How far above 1 the ratio counts."""
        return self.clip_range_high or self.clip_range

    def check(self) -> None:
        super().check()
        self.counts_only_with("surrogate = 'clip'", self.surrogate == "clip", "dual_clip")
        if 0 < self.dual_clip <= 1:
            raise InputError(
                f"{self.dual_clip} would cut off the ratio 1 of unchanged weights", where="dual_clip", fix="above 1"
            )


@dataclass(frozen=True, kw_only=True)
class ClippedOptions(RatioOptions, PolicyGradientOptions):
    """What every policy gradient has that takes several steps on its rollouts."""

    matters: ClassVar[tuple[str, ...]] = (*PolicyGradientOptions.matters, "n_epochs", "clip_range")


@dataclass(frozen=True, kw_only=True)
class OnePassOptions(Config):
    """For losses that don't correct for the steps already taken: one pass over the rollouts, without an option."""

    n_epochs: ClassVar[int] = 1


FDivergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class OfflineOptions(TrainingOptions):
    """Pull to the reference.

    What every algorithm has that learns from recorded feedback under the policy itself.
    """

    matters: ClassVar[tuple[str, ...]] = ("beta", *TrainingOptions.matters)

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
    """Likelihood of the best response.

    What every algorithm has that compares the responses of a ranking.
    """

    matters: ClassVar[tuple[str, ...]] = (*OfflineOptions.matters, "sft_weight")

    sft_weight: NonNegative = 0.0
    """Weight of the negative log-likelihood of the best response, in nats a token, that is added to the loss
    (arXiv:2404.19733). It keeps the best response from losing probability together with the others."""
